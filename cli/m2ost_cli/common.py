"""What the commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2ost_preprocess.contract import ManifestError
from m2ost_preprocess.errors import PreprocessError


class UserError(Exception):
    """A command cannot go on; the message says what, where and what to do."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import into a message that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"this command needs the extra '{extra}' ({error}): pip install 'm2ost-triton[{extra}]'"
        ) from error


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors raised on purpose by the rooms that are loaded; anything else is a defect and keeps its traceback."""
    kinds: list[type[Exception]] = [PreprocessError, ManifestError, OSError]
    for module, name in (
        ("m2ost.checkpoint", "CheckpointError"),
        ("m2ost.data.errors", "DataError"),
        ("m2ost.training.config", "ConfigError"),
        ("m2ost.training.loop", "TrainingError"),
        ("m2ost_export.errors", "ExportError"),
        ("m2ost_client.errors", "ClientError"),
        ("m2ost_loadtests.errors", "LoadTestError"),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


def cache_folder() -> Path:
    """Where exports that are made once are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2ost-triton"


def read_genes(panel: Path | None, outputs: int) -> tuple[str, ...]:
    """The gene panel from a file; without one, ``outputs`` names that say that they are none."""
    with needs("export"):
        from m2ost.checkpoint import read_panel
    return read_panel(panel) if panel else tuple(f"untrained_{i:03d}" for i in range(outputs))
