"""Stream batches of spots through a served release.

::

    async with SpotStream("localhost:8001") as stream:
        async for batch in stream.predict("slides/a.svs", centers):
            result[batch.rows] = batch.expression
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import m2ost_contract as contract
import numpy as np
from m2ost_contract import EngineInfo, RowStatus
from m2ost_preprocess.decoder import DESCRIBE_TIMEOUT_S, Decoder, SlideInfo
from m2ost_preprocess.tiling.views import spatial_order

from .answers import Expression, Statuses, read_expression, read_scored, read_slide_info
from .connection import FULL_FOR_S, Connection, Window, slide_deadline_s
from .credentials import Credentials
from .errors import InputError, RequestRejected
from .requests import info_inputs, spot_inputs, view_inputs, whole_slide_inputs
from .timeline import Timeline

Rows = np.ndarray[Any, np.dtype[np.intp]]
Positions = np.ndarray[Any, np.dtype[np.int32]]

_Part = TypeVar("_Part")
_Answer = TypeVar("_Answer")

DESCRIBE_DEADLINE_S = DESCRIBE_TIMEOUT_S + 30
"""Deadline of a description in seconds: the server's own limit comes first, and its answer says why."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream behaves.

    Parameters
    ----------
    batch_rows : int
        Spots a request, 1 to 256.
    window : int
        Most requests in flight; bounds the client's and the server's memory.
    deadline_s : float
        Deadline of one request in seconds.
    retry_for_s : float
        How long a request is sent again while the server is away, in seconds.
    full_for_s : float
        How long it is sent again while the server is full and answers none of this stream's requests, in seconds.
    background : bool
        Let requests of others go first, as is right for an archive.
    model : str, optional
        Name of the release that is meant, on a server of several.
    credentials : Credentials
        What the server is shown, and whom this client trusts.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    batch_rows: int = 32
    window: int = 4
    deadline_s: float = 300.0
    retry_for_s: float = 60.0
    full_for_s: float = FULL_FOR_S
    background: bool = False
    model: str | None = None
    credentials: Credentials = field(default_factory=Credentials)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_rows <= contract.MAX_ROWS:
            raise ValueError(f"batch_rows must be 1 to {contract.MAX_ROWS}, not {self.batch_rows}")
        if self.window < 1 or self.deadline_s <= 0 or min(self.retry_for_s, self.full_for_s) < 0:
            raise ValueError("window and deadline_s must be positive, retry_for_s and full_for_s not negative")


@dataclass(frozen=True)
class SpotBatch:
    """Results of one request.

    Parameters
    ----------
    rows : ndarray of intp, shape (n,)
        Which of the caller's spots these are.
    expression : ndarray of float32, shape (n, G)
        NaN in rows whose status is not OK.
    status : ndarray of int32, shape (n,)
        ``RowStatus`` values.
    """

    rows: Rows
    expression: Expression
    status: Statuses


class SpotStream:
    """An asynchronous client of one server; an async context manager.

    Parameters
    ----------
    address : str
        ``host:port`` of the gRPC service, ``dns:///name:port`` of several that take turns, or a list of them.
    options : StreamOptions, optional
    timeline : Timeline, optional
        Where requests are noted.
    """

    def __init__(self, address: str, options: StreamOptions | None = None, *, timeline: Timeline | None = None) -> None:
        self.options = options or StreamOptions()
        self._window = Window(self.options.window)
        self._connection = Connection(
            address,
            deadline_s=self.options.deadline_s,
            retry_for_s=self.options.retry_for_s,
            full_for_s=self.options.full_for_s,
            background=self.options.background,
            window=self._window,
            model=self.options.model,
            credentials=self.options.credentials,
            timeline=timeline,
        )

    async def __aenter__(self) -> SpotStream:
        """Connect and read what is served.

        Raises
        ------
        InputError
            If the credentials cannot be used, or not for this address.
        AccessRefused
            If server and client do not trust each other.
        ServerUnavailable
            If the server is away for ``retry_for_s``, or full for ``full_for_s``.
        RequestRejected
            If the server serves no release of this project, none of that name, or several and none is named.
        """
        await self._connection.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connection.close()

    @property
    def info(self) -> EngineInfo:
        """What the server serves, as read on entry."""
        return self._connection.info

    @property
    def retries(self) -> int:
        """Requests that were sent again so far."""
        return self._connection.retries

    async def slide_info(self, slide: str, *, pitch_um: float | None = None, mpp: float | None = None) -> SlideInfo:
        """Describe a slide under the server's roots.

        Parameters
        ----------
        slide : str
            ``root/relative/path``.
        pitch_um : float, optional
            Ask for a grid of spots over the tissue, this many µm apart.
        mpp : float, optional
            µm/px of the slide, in place of what the file says.

        Returns
        -------
        SlideInfo
            ``centers`` are floored to whole pixels.

        Raises
        ------
        RequestRejected
            If the slide is unknown or unreadable, or a grid is asked for and µm/px is unknown.
        """
        inputs = info_inputs(slide, pitch_um=pitch_um, mpp=mpp)
        return read_slide_info(
            await self._connection.infer(contract.MODEL_INFO, inputs, deadline_s=DESCRIBE_DEADLINE_S)
        )

    async def predict(
        self, slide: str, centers: Any, *, scale: float = 1.0, pyramid: bool = False
    ) -> AsyncGenerator[SpotBatch, None]:
        """Score spots of a slide that lies under the server's roots: only coordinates are sent.

        Parameters
        ----------
        slide : str
            ``root/relative/path``.
        centers : array_like, shape (n, 2)
            x, y in level-0 pixels; floored.
        scale : float
            Level-0 pixels per view pixel of the finest view; 1 takes the slide's own pixels.
        pyramid : bool
            Let the server cut coarse views from the slide's own lower levels where one fits: less to decode, but other
            values than the definition's.

        Yields
        ------
        SpotBatch
            As the answers arrive, in any order; every spot exactly once. Closing the generator (``aclosing``)
            cancels what is in flight.

        Raises
        ------
        ValueError
            If a centre is not a finite position.
        InputError
            If the release predicts a slide as a whole.
        RequestRejected
            If the server refuses a request: unknown or unreadable slide.
        ServerUnavailable
            If the server is away for ``retry_for_s``, or full for ``full_for_s``.
        ReleaseChanged
            If the server comes back with another release.
        """
        self.check_level()
        positions = contract.as_centers(centers)

        async def score(rows: Rows) -> SpotBatch:
            return SpotBatch(rows, *await self._score_positions(slide, positions[rows], scale, pyramid))

        async with aclosing(self._stream(self._batches(self._order(positions, scale)), score)) as batches:
            async for batch in batches:
                yield batch

    async def predict_whole(
        self, slide: str, centers: Any, places: Any, *, scale: float = 1.0, pyramid: bool = False
    ) -> AsyncGenerator[SpotBatch, None]:
        """Score all spots of a slide together, in one request, with a release that predicts a slide as a whole.

        Parameters
        ----------
        slide, centers, scale, pyramid
            As in :meth:`predict`. What a spot's values are depends on which others are among them.
        places : array_like of integers, shape (n, 2)
            x, y of the spots on the array.

        Yields
        ------
        SpotBatch
            One, of all spots in their order; none where there are no spots.

        Raises
        ------
        InputError
            If the release predicts each spot by itself.
        PositionsError
            If the network does not know these places, or there are too many spots.
        ValueError, RequestRejected, ServerUnavailable, ReleaseChanged
            As :meth:`predict`.
        """
        level = self.info.slide_level
        if level is None:
            raise InputError("this release predicts each spot by itself; score its spots with predict")
        positions, on_array = contract.as_centers(centers), np.asarray(places, np.int32).reshape(-1, 2)
        if not len(positions):
            return
        level.check(on_array, len(positions), whose=slide)
        answer = await self._connection.infer(
            self.info.names.slide,
            whole_slide_inputs(slide, positions, on_array, scale),
            deadline_s=slide_deadline_s(self.options.deadline_s, len(positions)),
            parameters={contract.PYRAMID_PARAMETER: True} if pyramid else {},
        )
        await self._connection.check_release()
        yield SpotBatch(np.arange(len(positions)), *read_scored(answer, len(positions), self.info))

    def check_level(self) -> None:
        """Refuse to score spots by themselves where the release predicts a slide as a whole.

        Raises
        ------
        InputError
            Says what to do in its place.
        """
        if self.info.slide_level is not None:
            raise InputError(
                "this release predicts a slide as a whole, from all its spots and their places on the array; there are "
                "no dense maps of it, and nobody can send it pixels: score the slide by its name, with spots or a grid"
            )

    async def predict_blocks(
        self, slide: str, blocks: Iterable[Any], *, scale: float = 1.0, pyramid: bool = False
    ) -> AsyncGenerator[tuple[int, SpotBatch], None]:
        """Score more positions than anybody can hold: block after block, each taken when there is room for a request.

        A block is taken when every request of those before it is sent, so that at most ``window`` and one are open.

        Parameters
        ----------
        slide : str
            ``root/relative/path``.
        blocks : iterable of array_like, each shape (n, 2)
            x, y in level-0 pixels; blocks are scored in this order, up to ``batch_rows`` of one block a request.
        scale, pyramid
            As in :meth:`predict`.

        Yields
        ------
        int
            The number of a block.
        SpotBatch
            As in :meth:`predict`; its rows are those of the block.

        Raises
        ------
        ValueError, RequestRejected, ServerUnavailable, ReleaseChanged
            As :meth:`predict`.
        """
        self.check_level()

        def parts() -> Iterator[tuple[int, Positions, Rows]]:
            for number, block in enumerate(blocks):
                positions = contract.as_centers(block)
                for rows in self._batches(self._order(positions, scale)):
                    yield number, positions, rows

        async def score(part: tuple[int, Positions, Rows]) -> tuple[int, SpotBatch]:
            number, positions, rows = part
            return number, SpotBatch(rows, *await self._score_positions(slide, positions[rows], scale, pyramid))

        async with aclosing(self._stream(parts(), score)) as batches:
            async for batch in batches:
                yield batch

    async def predict_local(
        self, path: Path, centers: Any, decoder: Decoder, *, scale: float = 1.0, pyramid: bool = False
    ) -> AsyncGenerator[SpotBatch, None]:
        """Score spots of a slide that only this host can read: the views are cut here and sent.

        Parameters
        ----------
        path : Path
            The slide's file.
        centers, scale, pyramid
            As in :meth:`predict`.
        decoder : Decoder
            For the views of the served engine (``info.views``).

        Yields
        ------
        SpotBatch
            As in :meth:`predict`.

        Raises
        ------
        ValueError
            If the decoder cuts other views than the engine takes.
        SlideError
            If the slide cannot be read. Otherwise as :meth:`predict`.
        """
        self.check_level()
        if decoder.geometry != self.info.views:
            raise ValueError(f"the engine takes {self.info.views}, the decoder cuts {decoder.geometry}")
        positions = contract.as_centers(centers)

        async def score(rows: Rows) -> SpotBatch:
            views = [np.empty((len(rows), *self.info.views.shape), np.uint8) for _ in self.info.views.names]
            scales = np.full(len(rows), scale, np.float32)
            status = await asyncio.to_thread(decoder.cut_views, path, positions[rows], scales, views, pyramid=pyramid)
            expression = await self.score_views(views)
            return SpotBatch(rows, np.where(status[:, None] == RowStatus.OK, expression, np.float32(np.nan)), status)

        async with aclosing(self._stream(self._batches(self._order(positions, scale)), score)) as batches:
            async for batch in batches:
                yield batch

    async def score_views(self, views: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> Expression:
        """Score the views of up to 256 spots in one request.

        Parameters
        ----------
        views : sequence of ndarray of uint8, each shape (n, size_px, size_px, 3)
            Fine to coarse, RGB, as ``info.views`` says.

        Returns
        -------
        ndarray of float32, shape (n, G)

        Raises
        ------
        BadAnswer
            If the server answers anything else. Otherwise as :meth:`predict`.
        """
        self.check_level()
        inputs = view_inputs(self.info.views.names, views)
        answer = await self._infer(self.info.names.patches, inputs, len(views[0]))
        return read_expression(answer, len(views[0]), self.info)

    async def _score_positions(
        self, slide: str, positions: Positions, scale: float, pyramid: bool
    ) -> tuple[Expression, Statuses]:
        inputs = spot_inputs(slide, positions, scale)
        parameters = {contract.PYRAMID_PARAMETER: True} if pyramid else {}
        answer = await self._infer(self.info.names.slide, inputs, len(positions), parameters)
        return read_scored(answer, len(positions), self.info)

    async def _infer(self, model: str, inputs: list[Any], rows: int, parameters: dict[str, Any] | None = None) -> Any:
        """Ask for rows; where Triton itself finds no room for their views, it says nothing of them."""
        try:
            return await self._connection.infer(model, inputs, parameters=parameters or {})
        except RequestRejected as error:
            if "shared memory pool" not in str(error):
                raise
            size = rows * self.info.views.n_views * math.prod(self.info.views.shape)
            raise RequestRejected(
                f"the views of {rows} spots, {size / (1 << 20):.0f} MiB, find no room in the server's /dev/shm: send "
                "fewer spots a request (--batch-rows), or give it more, for a container "
                f"--shm-size {contract.shm_mib(size)}m; Triton: {error}",
                error.status,
            ) from error

    def _order(self, positions: Positions, scale: float) -> Rows:
        views = self.info.views
        sane = min(max(scale, contract.SCALE_MIN), contract.SCALE_MAX) if math.isfinite(scale) else 1.0
        return spatial_order(positions, window_px=views.window_px(views.n_views - 1, sane))

    def _batches(self, order: Rows) -> Iterator[Rows]:
        """Rows in the order given, up to ``batch_rows`` at a time; see :func:`m2ost_contract.spans`."""
        most = self.options.batch_rows
        yield from (order[span] for span in contract.spans(len(order), most, most))

    async def _stream(
        self, parts: Iterator[_Part], score: Callable[[_Part], Awaitable[_Answer]]
    ) -> AsyncGenerator[_Answer, None]:
        """Score parts, each taken when there is room for it; yields the answers as they arrive."""
        pending: set[asyncio.Task[_Answer]] = set()
        done: set[asyncio.Task[_Answer]] = set()
        try:
            while True:
                for part in islice(parts, max(0, self._window.size - len(pending))):
                    pending.add(asyncio.ensure_future(score(part)))
                if not pending:
                    break
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = task.result()
                    self._window.success()
                    yield answer
            await self._connection.check_release()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, *done, return_exceptions=True)
