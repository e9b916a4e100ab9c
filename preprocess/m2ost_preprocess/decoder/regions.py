"""The child's end of :class:`~.protocol.ReadRegions`: regions, strip by strip, through a few slots of shared memory."""

from __future__ import annotations

import mmap
from multiprocessing.connection import Connection
from typing import Protocol

from .. import progress
from ..readers import SlideReader
from ..tiling.spans import Spans
from ..tiling.tiles import CachedReader, TilingCounts
from ..tiling.views import Region, for_each_region
from .control import Control
from .gpu import GpuMemory, choose_decoding, on_cpu_for
from .protocol import SLOTS, Decoding, ReadRegions, RegionsRead, Strip, remember, strip_array


class _Slots(Protocol):
    """Where strips are put for the parent."""

    on_gpu: bool
    slot_bytes: int

    def fill(self, slot: int, reader: SlideReader, region: Region, top: int, height: int) -> None:
        """Read rows ``top`` … ``top + height`` of a region into a slot."""


class _SharedMemory:
    """The buffer shared with the parent, in ``SLOTS`` equal parts."""

    on_gpu = False

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer = buffer
        self.slot_bytes = len(buffer) // SLOTS

    def fill(self, slot: int, reader: SlideReader, region: Region, top: int, height: int) -> None:
        pixels = reader.read_padded(region.left, region.top + top, region.width, height, windows=region.windows)
        strip_array(self._buffer, slot, height, region.width)[:] = pixels


class RegionStreams:
    """Answers :class:`~.protocol.ReadRegions` jobs; ``control`` says which rows are still wanted."""

    def __init__(self, pipe: Connection, buffer: mmap.mmap, spans: Spans, control: Control) -> None:
        self._pipe, self._spans, self._control = pipe, spans, control
        self._host = _SharedMemory(buffer)
        self._gpu: GpuMemory | None = None
        self._decodings: dict[tuple[object, ...], Decoding] = {}
        self._sent = 0
        self._unacknowledged = 0

    def read(self, reader: CachedReader, job: ReadRegions) -> RegionsRead:
        """Send the regions of a job; all that was sent is acknowledged when it returns or raises.

        Raises ``UnsupportedRequest`` where the job insists on the GPU's decoder and it cannot read this slide.
        """
        counts = TilingCounts()
        decoding: Decoding | None = None

        def use(region: Region) -> None:
            nonlocal decoding
            decoding = self._decoding(reader, region, job)
            self._send(reader, region, self._slots(decoding))

        try:
            statuses = for_each_region(
                reader, job.centers, job.scales, job.geometry, use, counts, self._control.unwanted
            )
        finally:
            # Else the next job's first message would be an acknowledgement of this one.
            self._wait_until(0)
        counts += reader.take_counts()  # of tiles; regions and spots were counted above
        return RegionsRead(statuses, counts, decoding, reader.cache_bytes)

    def _decoding(self, reader: CachedReader, region: Region, job: ReadRegions) -> Decoding:
        # Tried on a slide's first region alone; what came out holds for all of its jobs.
        key = (job.slide, job.decode, job.gpu)
        if key not in self._decodings:
            decoding = choose_decoding(reader, region, job.decode, job.gpu)
            remember(self._decodings, key, self._with_memory(decoding, reader, job))
        return self._decodings[key]

    def _with_memory(self, decoding: Decoding, reader: CachedReader, job: ReadRegions) -> Decoding:
        """The same, once there are slots on the GPU that it asks for; else the CPU."""
        if decoding.device == "gpu" and self._gpu is None:
            assert job.gpu is not None
            try:
                self._gpu = GpuMemory(job.gpu, self._host.slot_bytes)
            except Exception as error:
                obstacle = f"GPU {job.gpu} gives no memory to share: {type(error).__name__}: {error}"
                return on_cpu_for(obstacle, reader, job.decode)
            self._post(self._gpu.slots)
        return decoding

    def _slots(self, decoding: Decoding) -> _Slots:
        if decoding.device == "cpu":
            return self._host
        assert self._gpu is not None
        return self._gpu

    def _send(self, reader: SlideReader, region: Region, slots: _Slots) -> None:
        # As many rows as a slot holds.
        rows = max(1, slots.slot_bytes // (3 * region.width))
        for top in range(0, region.height, rows):
            height = min(rows, region.height - top)
            # Acknowledgements come in order: with fewer than all slots under way, the next one is free.
            self._wait_until(SLOTS - 1)
            slot = self._sent % SLOTS
            with self._spans.span("read"):
                slots.fill(slot, reader, region, top, height)
            progress.beat()
            self._post(Strip(region, top, height, slot, slots.on_gpu))
            self._sent += 1

    def _post(self, answer: object) -> None:
        self._pipe.send(answer)
        self._unacknowledged += 1

    def _wait_until(self, unacknowledged: int) -> None:
        while self._unacknowledged > unacknowledged:
            self._pipe.recv()
            self._unacknowledged -= 1
