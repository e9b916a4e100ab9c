"""How an archive is re-scored, and what a run over it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..credentials import Credentials
from ..exports import Exports
from .endpoint import EndpointOptions
from .patience import Patience
from .plan import Settings


@dataclass(frozen=True, kw_only=True)
class RescoreOptions:
    """How an archive is re-scored.

    Parameters
    ----------
    out : Path
        The archive's folder.
    settings : Settings
        What all results have in common.
    genes : tuple of str, optional
        Draw maps of these and the overview; None draws none.
    exports : Exports
        Further files of every slide that is scored; with reports there is an index over the archive too.
    batch_rows : int
        Spots a request.
    spots_in_flight : int
        Slides are taken up until they have this many spots together.
    rescore_changed : bool
        Score again what was scored from another content, release, or other settings; otherwise that is refused.
    cache : Path
        Folder that remote slides are staged in; runs may share it.
    cache_bytes : int
        Most bytes of them, of this run.
    patience : Patience
        With the storages that remote slides come from.
    """

    out: Path
    settings: Settings = field(default_factory=Settings)
    genes: tuple[str, ...] | None = None
    exports: Exports = field(default_factory=Exports)
    batch_rows: int = 32
    spots_in_flight: int = 4096
    rescore_changed: bool = False
    cache: Path | None = None
    cache_bytes: int = 32 << 30
    patience: Patience = field(default_factory=Patience)

    @property
    def staging_folder(self) -> Path:
        """Where remote slides are staged."""
        return self.cache or self.out / "cache"


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers that score an archive, and how they are used.

    Parameters
    ----------
    addresses : tuple of str
        ``host:port`` of their gRPC services, as whoever asks them sees them.
    window : int
        Most requests in flight at each of them; on Ray, of each task.
    retry_for_s : float
        How long the run goes on while none is healthy, or none answers a single request, in seconds.
    send_pixels : bool
        Whether slides are read here, and their views sent; else ``path`` names a slide under the servers' roots.
    ray : str, optional
        Address of a Ray cluster whose workers ask the servers.
    model : str, optional
        Name of the release that is meant, on servers of several.
    range_spots : int
        On Ray, about so many spots a task: what one costs that is run again.
    credentials : Credentials
        What the servers are shown, and whom their clients trust. Workers of a Ray cluster are told the files' paths,
        and read them where they are.
    """

    addresses: tuple[str, ...] = ()
    window: int = 2
    retry_for_s: float = 300.0
    send_pixels: bool = False
    ray: str | None = None
    model: str | None = None
    range_spots: int = 1024
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def endpoints(self) -> EndpointOptions:
        """How each of them is used."""
        return EndpointOptions(window=self.window, model=self.model, credentials=self.credentials)


@dataclass(frozen=True)
class Progress:
    """How far a run is: slides with an outcome, of how many; spots scored in it."""

    slides: int
    of_slides: int
    spots: int


@dataclass(frozen=True)
class ArchiveReport:
    """What a run came to.

    Parameters
    ----------
    summary : dict
        The content of ``summary.json``.
    drained : bool
        Whether it was asked to stop before its end.
    """

    summary: dict[str, Any]
    drained: bool

    @property
    def complete(self) -> bool:
        """Whether every slide has its result and every spot its value, and nothing was left out that may be a slide."""
        summary = self.summary
        hidden = any(left["problem"] for left in summary["left_out"]["files"])
        return not (summary["failed"] or summary["left"] or summary["spots_without_value"] or hidden)
