"""Has jobs done by a child process: a child that a slide ends is replaced, and the slide read in another way."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from m2ost_contract import ENV_READER, READERS

from ..readers.base import Pixels
from .child import Child, ChildCrashed, ChildLost, Limits
from .control import Control, new_control
from .protocol import Acknowledged, GpuSlots, Job, ReadRegions, RegionsRead, Slide, Strip, remember, strip_array

Answer = TypeVar("Answer")


class RegionReceiver(Protocol):
    """Takes the pixels of regions as they come out of a decoder."""

    def open_slots(self, slots: GpuSlots) -> None:
        """Make the child's slots in GPU memory readable here; those of an earlier child are gone."""

    def take(self, strip: Strip, pixels: Pixels | None) -> None:
        """Take a strip: ``pixels`` (height, width, 3), which are overwritten afterwards, or None for one on the GPU."""


class Jobs:
    """A child, the memory shared with it, and what is known of slides that it was lost on; not thread-safe."""

    def __init__(
        self,
        buffer_bytes: int,
        *,
        reader: str | None,
        without: tuple[str, ...],
        threads: int,
        environment: Mapping[str, str],
    ) -> None:
        self._reader = os.environ.get(ENV_READER, "auto") if reader is None else reader
        if self._reader not in READERS:
            raise ValueError(f"the reader of slides must be one of {', '.join(READERS)}, not {self._reader!r}")
        self._without = without
        self._closed = False
        # By slide: why the GPU may not decode it any more, and readers that crashed on it.
        self._lost: dict[Slide, str] = {}
        self._crashed: dict[Slide, tuple[str, ...]] = {}
        self._buffer_fd = os.memfd_create("m2ost-views")
        os.ftruncate(self._buffer_fd, buffer_bytes)
        self.buffer_bytes = buffer_bytes
        self.buffer = mmap.mmap(self._buffer_fd, buffer_bytes)
        self._control_fd = new_control()
        self._control = Control(self._control_fd)
        self.child = Child(self._buffer_fd, self._control_fd, self._control, threads, environment)

    def start(self) -> None:
        """Start the child if none lives; ``RuntimeError`` once closed, ``OSError`` if the system grants no process."""
        if self._closed:
            raise RuntimeError("the decoder is closed")
        self.child.start()

    def ask(self, job: Job, limits: Limits) -> Any:
        """What the child answers to a job; raises what it answers of an error."""
        return self._surviving(job.slide, lambda: self._ask_once(job, limits))

    def read_regions(self, job: ReadRegions, receiver: RegionReceiver, limits: Limits) -> RegionsRead:
        """Have the strips of regions received; where the child is lost with a GPU to choose, once more by the CPU."""
        slide = job.slide

        def receive(decode: str) -> RegionsRead:
            return self._receive(replace(job, decode=decode), receiver, limits)

        if job.decode == "cpu" or job.gpu is None:
            return self._surviving(slide, lambda: receive(job.decode))
        if job.decode == "gpu":
            return receive("gpu")
        if slide not in self._lost:
            try:
                return receive("auto")
            except ChildLost as error:
                remember(self._lost, slide, f"where the GPU may decode, {error.message}")
        answer = self._surviving(slide, lambda: receive("cpu"))
        decoding = answer.decoding and replace(answer.decoding, reason=self._lost[slide])
        return replace(answer, decoding=decoding)

    def close(self) -> None:
        """End the child and free the memory; later jobs raise ``RuntimeError``."""
        if not self._closed:
            self._closed = True
            self.child.stop()
            del self.buffer  # unmapped with the last view of it, which a traceback may hold
            os.close(self._buffer_fd)
            self._control.close()
            os.close(self._control_fd)

    def _receive(self, job: ReadRegions, receiver: RegionReceiver, limits: Limits) -> RegionsRead:
        limits = limits.begun()  # for all strips together
        answer: Strip | GpuSlots | RegionsRead = self._ask_once(job, limits)
        while not isinstance(answer, RegionsRead):
            try:
                self._hand_over(answer, receiver)
            except BaseException:
                self.child.stop()  # in the middle of its job
                raise
            answer = self.child.ask(Acknowledged(), job.slide.name, limits)
        return answer

    def _hand_over(self, answer: Strip | GpuSlots, receiver: RegionReceiver) -> None:
        if isinstance(answer, GpuSlots):
            receiver.open_slots(answer)
        elif answer.on_gpu:
            receiver.take(answer, None)
        else:
            receiver.take(answer, strip_array(self.buffer, answer.slot, answer.height, answer.region.width))

    def _ask_once(self, job: Job, limits: Limits) -> Any:
        self.start()
        self._control.reset()
        without = (*self._without, *self._crashed.get(job.slide, ()))
        return self.child.ask(replace(job, reader=self._reader, without=without), job.slide.name, limits)

    def _surviving(self, slide: Slide, ask: Callable[[], Answer]) -> Answer:
        """Ask once more, without cuCIM, where a native library ends the child."""
        try:
            return ask()
        except ChildCrashed:
            if self._reader != "auto" or slide in self._crashed:
                raise
            remember(self._crashed, slide, ("cucim",))
            return ask()
