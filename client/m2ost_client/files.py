"""Files of a slide's result: complete under their final names or absent, and all of one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import maps
from .errors import OutputError
from .metadata import stage
from .results import SlideResult, to_anndata


def check_writable(folder: Path) -> None:
    """Make the output folder and prove that a file can be written there, before any work is done.

    Raises
    ------
    OutputError
        If not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from error


def metadata_path(folder: Path, name: str) -> Path:
    """Where the metadata of a result lies."""
    return folder / f"{name}.json"


def read_metadata(folder: Path, name: str) -> dict[str, Any]:
    """The metadata of an earlier run's result; empty where there is none that can be read."""
    try:
        metadata = json.loads(metadata_path(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def write_result(
    result: SlideResult, metadata: dict[str, Any], genes: Iterable[str] | None, folder: Path
) -> tuple[Path, ...]:
    """Write the maps, ``<name>.json`` and ``<name>.h5ad`` of a result, in place of an earlier one of that name.

    All files are complete before the first gets its final name, and the table gets it last: where it is, the others
    are, and are of the same run.

    Parameters
    ----------
    result : SlideResult
    metadata : dict
        For the JSON and the table's ``uns["m2ost"]``. ``maps`` is added and, where it has ``timings``, ``write_s`` to
        them: without, the files hold nothing that depends on when they are written.
    genes : iterable of str, optional
        Genes to draw maps of, beside that of the principal components; None draws none at all. What a file name should
        not hold is quoted in theirs (``/`` as ``%2F``).
    folder : Path

    Returns
    -------
    tuple of Path
        The files, in the order in which they got their names.

    Raises
    ------
    OutputError
        If a file cannot be written: the disk is full, the folder not writable. The earlier result is still there then.
    """
    name = result.name
    drawings: dict[str, Callable[[Path], None]] = {}
    if len(result.spots) and genes is not None:
        drawings[f"{name}.pca.png"] = partial(maps.draw_pca, result)
        drawings |= {f"{name}.{quote(gene, safe='')}.png": partial(maps.draw_gene, result, gene) for gene in genes}
    stale = set(_maps_before(folder, name)) - set(drawings)
    metadata["maps"] = list(drawings)
    table, facts = folder / f"{name}.h5ad", metadata_path(folder, name)
    adata = to_anndata(result, metadata)
    try:
        with tempfile.TemporaryDirectory(prefix=".m2ost-", dir=folder) as scratch:
            with stage(metadata.get("timings", {}), "write_s"):
                for file, draw in drawings.items():
                    _write(Path(scratch, file), draw)
                _write(Path(scratch, table.name), adata.write_h5ad)
            text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            _write(Path(scratch, facts.name), partial(Path.write_text, data=text, encoding="utf-8"))
            for path in (table, *(folder / file for file in stale)):
                path.unlink(missing_ok=True)
            files = (*(folder / file for file in drawings), facts, table)
            for path in files:
                Path(scratch, path.name).replace(path)
    except (OSError, RuntimeError) as error:
        # h5py reports a full disk as RuntimeError or OSError, depending on when it notices.
        raise OutputError(
            f"{folder}: the result of {name} cannot be written ({error}); free space or choose another --out"
        ) from error
    return files


def _maps_before(folder: Path, name: str) -> list[str]:
    """Maps of an earlier run of that name, by its own record: ``a.*.png`` would be maps of a slide ``a.b`` too."""
    recorded = map(str, read_metadata(folder, name).get("maps") or [])
    return [file for file in recorded if file.startswith(f"{name}.") and file.endswith(".png") and "/" not in file]


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    write(path)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
