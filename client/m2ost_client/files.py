"""Files of a slide's result: complete under their final names or absent, and all of one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from m2ost_contract import sync, sync_names, write_complete

from .errors import OutputError
from .results import SlideResult, Writer
from .timing import stage

REPORT_SUFFIX = ".report.html"
"""Of a slide's page; its name can never be the index's."""
INDEX = "index.html"
"""The page over a folder of results."""


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
    result: SlideResult,
    metadata: dict[str, Any],
    genes: Iterable[str] | None,
    folder: Path,
    exports: Mapping[str, Writer] | None = None,
) -> tuple[Path, ...]:
    """Write the maps, ``<name>.json`` and ``<name>.h5ad`` of a result, in place of an earlier one of that name.

    All files are complete before the first gets its final name, and the table gets it last: where it is, the others
    are, and are of the same run.

    Parameters
    ----------
    result : SlideResult
    metadata : dict
        For the JSON and the table's ``uns["m2ost"]``. ``maps`` and ``exports`` are added and, where it has ``timings``,
        ``write_s`` to them: without, the files hold nothing that depends on when they are written.
    genes : iterable of str, optional
        Genes to draw maps of, beside that of the principal components; None draws none at all. What a file name should
        not hold is quoted in theirs (``/`` as ``%2F``).
    folder : Path
    exports : mapping of str to Writer, optional
        Further files of the result by name: see :mod:`m2ost_client.reports`.

    Returns
    -------
    tuple of Path
        The files, in the order in which they got their names.

    Raises
    ------
    OutputError
        If a file cannot be written: the disk is full, the folder not writable. The earlier result is still there then.
    """
    from .tables import to_anndata

    name = result.name
    drawings: dict[str, Writer] = {}
    if len(result.spots) and genes is not None:
        from . import maps

        drawings[f"{name}.pca.png"] = partial(maps.draw_pca, result)
        drawings |= {f"{name}.{quote(gene, safe='')}.png": partial(maps.draw_gene, result, gene) for gene in genes}
    exports = exports or {}
    stale = {*_maps_before(folder, name), *_exports_before(folder, name)} - {*drawings, *exports}
    metadata["maps"], metadata["exports"] = list(drawings), list(exports)
    table, facts = folder / f"{name}.h5ad", metadata_path(folder, name)
    adata = to_anndata(result, metadata)
    try:
        with tempfile.TemporaryDirectory(prefix=".m2ost-", dir=folder) as scratch:
            with stage(metadata.get("timings", {}), "write_s"):
                for file, write in {**drawings, **exports}.items():
                    write(Path(scratch, file))
                adata.write_h5ad(Path(scratch, table.name))
            text = _to_json(metadata)
            Path(scratch, facts.name).write_text(text, encoding="utf-8")
            sync(Path(scratch))  # what cannot be kept is told while the earlier result is there
            for path in (table, *(folder / file for file in stale)):
                _remove(path, Path(scratch))
            files = (*(folder / file for file in (*drawings, *exports)), facts, table)
            for path in files:
                _put(Path(scratch, path.name), path)
        sync_names(folder)
    except (OSError, RuntimeError) as error:
        # h5py reports a full disk as RuntimeError or OSError, depending on when it notices.
        raise OutputError(
            f"{folder}: the result of {name} cannot be written ({error}); free space or choose another --out"
        ) from error
    return files


def add_exports(name: str, exports: Mapping[str, Writer], folder: Path) -> tuple[Path, ...]:
    """Write further files of a result that lies in ``folder``, and note them in its JSON where it has one.

    Parameters
    ----------
    name : str
        Stem of the result's files.
    exports : mapping of str to Writer
        Files by name: see :mod:`m2ost_client.reports`.
    folder : Path

    Returns
    -------
    tuple of Path
        The files, complete under their names.

    Raises
    ------
    OutputError
        If a file cannot be written. Those of an earlier call are still there then.
    """
    facts, metadata = metadata_path(folder, name), read_metadata(folder, name)
    known = _exports_before(folder, name)
    noted = {**metadata, "exports": [*known, *(file for file in exports if file not in known)]}
    try:
        with tempfile.TemporaryDirectory(prefix=".m2ost-", dir=folder) as scratch:
            for file, write in exports.items():
                write(Path(scratch, file))
            if metadata:
                Path(scratch, facts.name).write_text(_to_json(noted), encoding="utf-8")
            sync(Path(scratch))
            if metadata:
                _put(Path(scratch, facts.name), facts)
            for file in exports:
                _put(Path(scratch, file), folder / file)
        sync_names(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: the exports of {name} cannot be written ({error}); free space or make the folder writable"
        ) from error
    return tuple(folder / file for file in exports)


def write_file(path: Path, text: str) -> None:
    """Write a text file, complete under its name or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        write_complete(path, text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); free space or make the folder writable") from error


def _to_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _maps_before(folder: Path, name: str) -> list[str]:
    """Maps of an earlier run of that name, by its own record: ``a.*.png`` would be maps of a slide ``a.b`` too."""
    recorded = map(str, read_metadata(folder, name).get("maps") or [])
    return [file for file in recorded if file.startswith(f"{name}.") and file.endswith(".png") and "/" not in file]


def _exports_before(folder: Path, name: str) -> list[str]:
    """Exports of an earlier run of that name, by its own record."""
    recorded = map(str, read_metadata(folder, name).get("exports") or [])
    return [file for file in recorded if file.startswith(f"{name}.") and "/" not in file]


def _put(path: Path, target: Path) -> None:
    """Give a finished file or folder its name. An earlier folder of that name goes aside, to leave with ``path``'s."""
    if target.is_dir():
        _remove(target, path.parent)
    os.replace(path, target)


def _remove(path: Path, scratch: Path) -> None:
    """Take a file or a folder away from under its name, in one step."""
    if path.is_dir() and not path.is_symlink():
        path.replace(scratch / f"earlier {path.name}")
    else:
        path.unlink(missing_ok=True)
