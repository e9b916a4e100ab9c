"""Who reads the slides of an archive: the servers, by name, or this host, which sends pixels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from m2ost_contract import FINGERPRINT_PARAMETER, MODEL_INFO
from m2ost_preprocess.decoder import Decoder, SlideInfo
from m2ost_preprocess.errors import SlideNotFound, UnreadableSlide
from m2ost_preprocess.slides import fingerprint

from ..answers import read_fingerprint, read_slide_info
from ..requests import info_inputs
from ..stream import DESCRIBE_DEADLINE_S
from .pool import Pool
from .score import ByName, BySending, Scorer

MAX_ROOTS = 32
"""Most folders that an embedded server is started with: their list travels in one environment variable."""


class Access(Protocol):
    """How slides are reached.

    Attributes
    ----------
    scorer : Scorer
    reads_here : bool
        Whether this host reads the slides' files too.
    sends_pixels : bool
        Whether views are cut here.
    """

    scorer: Scorer
    reads_here: bool
    sends_pixels: bool

    def name(self, path: str) -> str:
        """What the scorer calls a slide."""

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """Describe a slide; see :meth:`~m2ost_client.stream.SpotStream.slide_info`."""

    async def fingerprint(self, path: str) -> str:
        """Identity of a slide's content now.

        Raises
        ------
        SlideNotFound, RequestRejected
            If there is no such slide.
        """


class OnServer:
    """Slides under the servers' roots, which this host need not see: ``path`` is a name there.

    Parameters
    ----------
    pool : Pool
    """

    reads_here = sends_pixels = False

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.scorer: Scorer = ByName(pool)

    def name(self, path: str) -> str:
        """See :class:`Access`."""
        return path

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """See :class:`Access`."""
        inputs = info_inputs(self.name(path), pitch_um=pitch_um, mpp=mpp)
        return read_slide_info(await self._pool.ask(MODEL_INFO, inputs, deadline_s=DESCRIBE_DEADLINE_S))

    async def fingerprint(self, path: str) -> str:
        """See :class:`Access`."""
        inputs = info_inputs(self.name(path))
        parameters = {FINGERPRINT_PARAMETER: True}
        answer = await self._pool.ask(MODEL_INFO, inputs, deadline_s=DESCRIBE_DEADLINE_S, parameters=parameters)
        return read_fingerprint(answer)


class Shared(OnServer):
    """Slides that servers and this host see alike, such as those of an embedded server.

    Parameters
    ----------
    pool : Pool
    roots : mapping of str to Path
        The servers' roots.
    """

    reads_here = True

    def __init__(self, pool: Pool, roots: Mapping[str, Path]) -> None:
        super().__init__(pool)
        self._roots = {name: root.resolve() for name, root in roots.items()}

    def name(self, path: str) -> str:
        """See :class:`Access`."""
        real = Path(path).resolve()
        for root, folder in self._roots.items():
            if real.is_relative_to(folder):
                return f"{root}/{real.relative_to(folder).as_posix()}"
        raise SlideNotFound(path, "lies under none of the folders that the server was started with")

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """See :class:`Access`."""
        # A folder that appeared after the start is under no root: what is not there is told first.
        existing(path)
        return await super().describe(path, pitch_um, mpp)

    async def fingerprint(self, path: str) -> str:
        """See :class:`Access`."""
        return await _fingerprint_here(path)


class Sent:
    """Slides that only this host reads.

    Parameters
    ----------
    pool : Pool
    decoder : Decoder
    """

    reads_here = sends_pixels = True

    def __init__(self, pool: Pool, decoder: Decoder) -> None:
        self._decoder = decoder
        self.scorer: Scorer = BySending(pool, decoder)

    def name(self, path: str) -> str:
        """See :class:`Access`."""
        return path

    async def describe(self, path: str, pitch_um: float | None, mpp: float | None) -> SlideInfo:
        """See :class:`Access`."""
        real = existing(path)
        return await asyncio.to_thread(self._decoder.describe, real, pitch_um=pitch_um, mpp=mpp)

    async def fingerprint(self, path: str) -> str:
        """See :class:`Access`."""
        return await _fingerprint_here(path)


def roots_of(paths: Iterable[str], staging: Path | None) -> dict[str, Path]:
    """Roots under which an embedded server finds all slides: their folders, or what these have in common.

    Parameters
    ----------
    paths : iterable of str
        Of the slides that exist.
    staging : Path, optional
        The folder that remote slides are staged in.
    """
    folders = {Path(path).resolve().parent for path in paths if Path(path).exists()}
    depth = max((len(folder.parts) for folder in folders), default=1)
    while len(folders) > MAX_ROOTS and depth > 1:
        depth -= 1
        folders = {Path(*folder.parts[:depth]) for folder in folders}
    outermost = sorted(folder for folder in folders if not any(parent in folders for parent in folder.parents))
    roots = {f"slides{n or ''}": folder for n, folder in enumerate(outermost)}
    return roots if staging is None else {**roots, "staged": staging}


async def _fingerprint_here(path: str) -> str:
    real = existing(path)
    try:
        return await asyncio.to_thread(fingerprint, real)
    except OSError as error:
        raise UnreadableSlide(path, f"cannot be read: {error.strerror}") from error


def existing(path: str) -> Path:
    """The file behind a path, without symbolic links."""
    if not Path(path).exists():
        if Path(path).is_symlink():
            raise SlideNotFound(path, f"links to {os.readlink(path)}, which is not there; mend the link")
        raise SlideNotFound(path, "no such file; mend the manifest or put it back")
    return Path(path).resolve()
