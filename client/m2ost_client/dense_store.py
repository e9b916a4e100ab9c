"""A dense map on disk: a Zarr (version 3) that has its final name only when it is whole, and goes on after a kill.

==================  ============================  ==================================================================
array               dimensions, type              meaning
==================  ============================  ==================================================================
``expression``      gene, y, x; float32           predicted target; NaN where ``status`` is not 0
``tissue``          y, x; bool                    mask: at least half of the cell is tissue
``status``          y, x; int8                    0: scored, −1: off the tissue and not asked, else a ``RowStatus``
``x``, ``y``        int64                         positions in level-0 pixels
``computed``        y, x; bool                    with a tolerance: the value is a prediction, not interpolated
``error``           y, x; float32                 with a tolerance: what interpolation missed, where it was measured
==================  ============================  ==================================================================

Gene comes first because a map is looked at gene by gene: one file (a shard) holds a block of all genes, and in it every
gene has a chunk of its own, so that one gene's map is read without the others. The group's attributes say the rest.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from m2ost_contract import RowStatus, put, write_complete
from m2ost_preprocess.slides.dense_grid import BLOCK_CELLS, NOT_ASKED, Block, DenseGrid

from .answers import Expression
from .errors import OutputError
from .files import metadata_path
from .results import status_name

Cells = np.ndarray[Any, np.dtype[np.intp]]


def new_store_path(folder: Path, name: str) -> Path:
    """Where a map will lie when it is whole.

    Raises
    ------
    OutputError
        If there is one already.
    """
    path = folder / f"{name}.zarr"
    if path.exists():
        raise OutputError(f"{path} exists and is never overwritten; remove it or choose another --out")
    return path


class DenseStore:
    """A map that is being computed, in a hidden folder beside the place where it will lie; a context manager.

    Parameters
    ----------
    folder : Path
        Folder of the results.
    name : str
        Stem of the result's files.
    grid : DenseGrid
    genes : tuple of str
        The genes that are kept, in order.
    attributes : dict
        For the group. A hidden folder left by a killed run goes on only if they are the same.
    refined : bool
        Whether only some of its places are computed, and the map says which.

    Attributes
    ----------
    done : dict of int to dict
        Blocks that are stored → spots by status name.
    scratch : Path
        A folder for what is needed until the map is whole; nobody has made it yet.

    Raises
    ------
    OutputError
        If there is a complete map of that name, another run is at work on it, or a killed run left a part of another.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        grid: DenseGrid,
        genes: tuple[str, ...],
        attributes: dict[str, Any],
        *,
        refined: bool = False,
    ) -> None:
        self._facts = metadata_path(folder, name)
        self._grid, self._refined = grid, refined
        self._part = folder / f".{name}.part"
        self.scratch = self._part / "levels"
        self._attributes = {**attributes, "genes": list(genes)}
        self.done: dict[int, dict[str, int]] = {}
        try:
            self._part.mkdir(exist_ok=True)
            with ExitStack() as stack:
                self._journal = stack.enter_context((self._part / "blocks").open("a+", encoding="utf-8"))
                self._lock()
                self._final = new_store_path(folder, name)
                self._group = self._continue() if (self._part / "run.json").exists() else self._create()
                self._open = stack.pop_all()
        except OSError as error:
            raise OutputError(f"{self._part}: cannot be written ({error}); choose another --out") from error

    def __enter__(self) -> DenseStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{self._part}: another run is at work on this map; choose another --out") from error

    def _create(self) -> Any:
        shape, genes = self._grid.shape, self._attributes["genes"]
        group = zarr.create_group(self._part / "map.zarr", overwrite=True, attributes=self._attributes)
        side = (BLOCK_CELLS, BLOCK_CELLS)
        group.create_array(
            "expression",
            shape=(len(genes), *shape),
            dtype="float32",
            chunks=(1, *side),
            shards=(len(genes), *side),
            fill_value=float("nan"),
            dimension_names=("gene", "y", "x"),
        )
        of_cells: dict[str, Any] = {"shape": shape, "chunks": side, "dimension_names": ("y", "x")}
        group.create_array("tissue", dtype="bool", fill_value=False, **of_cells)
        values = {"NOT_ASKED": NOT_ASKED, **{status.name: int(status) for status in RowStatus}}
        group.create_array("status", dtype="int8", fill_value=NOT_ASKED, attributes={"values": values}, **of_cells)
        if self._refined:
            group.create_array("computed", dtype="bool", fill_value=False, **of_cells)
            unit: dict[str, Any] = {"unit": "standard deviations of a gene over the map"}
            group.create_array("error", dtype="float32", fill_value=float("nan"), attributes=unit, **of_cells)
        for axis, name in enumerate("yx"):
            positions = group.create_array(name, shape=(shape[axis],), dtype="int64", dimension_names=(name,))
            positions[:] = self._grid.axis_px(axis)
        text = json.dumps(self._attributes, ensure_ascii=False)
        write_complete(self._part / "run.json", text)
        return group

    def _continue(self) -> Any:
        if json.loads((self._part / "run.json").read_text(encoding="utf-8")) != self._attributes:
            raise OutputError(
                f"{self._part} is a part of another map, left by a run that was stopped; "
                "run that one to its end, or remove it, or choose another --out"
            )
        self._journal.seek(0)
        text = self._journal.read()
        whole = text[: text.rfind("\n") + 1]  # the last line may be half written
        self._journal.truncate(len(whole.encode()))
        for line in whole.splitlines():
            record = json.loads(line)
            self.done[record["block"]] = record["by_status"]
        for scratch in (self._part / "map.zarr").rglob("*.partial"):
            scratch.unlink()
        return zarr.open_group(self._part / "map.zarr", mode="r+")

    def write(self, block: Block, expression: Expression, status: Any, **of_cells: Any) -> None:
        """Store a block.

        Parameters
        ----------
        block : Block
        expression : ndarray of float32, shape (genes, rows, columns)
        status : ndarray of int8, shape (rows, columns)
        **of_cells : ndarray, shape (rows, columns)
            ``computed`` and ``error`` of a refined map.

        Raises
        ------
        OutputError
            If the disk is full, or not writable any more. What is stored stays for a run that goes on.
        """
        by_status = dict(Counter(status_name(value) for value in status[tuple(block.cells.T)]))
        try:
            self._group["expression"][(slice(None), *block.area)] = expression
            for name, values in {"tissue": block.tissue, "status": status, **of_cells}.items():
                self._group[name][block.area] = values
            self._journal.write(json.dumps({"block": block.number, "by_status": by_status}) + "\n")
            self._journal.flush()
        except OSError as error:
            raise OutputError(
                f"{self._part}: block {block.number} cannot be written ({error}); free space and run it again, it goes "
                "on from here"
            ) from error
        self.done[block.number] = by_status

    def read(self, block: Block, names: tuple[str, ...]) -> dict[str, Any]:
        """What is stored of a block's cells: arrays of shape (rows, columns) by name."""
        return {name: self._group[name][block.area] for name in names}

    def finish(self, metadata: dict[str, Any], **attributes: Any) -> tuple[Path, ...]:
        """Give the map and its metadata their final names, the map last.

        Parameters
        ----------
        metadata : dict
            The content of ``<name>.json``.
        **attributes
            Further ones for the group, of the finished map.

        Returns
        -------
        tuple of Path
            The files, in the order in which they got their names.
        """
        facts, stored = self._part / self._facts.name, self._part / "map.zarr"
        text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._group.attrs.update(attributes)
            facts.write_text(text, encoding="utf-8")
            put(facts, self._facts)
            put(stored, self._final)
            shutil.rmtree(self._part, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"{self._final}: cannot be written ({error}); free space and run it again") from error
        return self._facts, self._final


def empty_block(block: Block, n_genes: int) -> Expression:
    """Room for a block's expression, NaN throughout: shape (genes, rows, columns)."""
    return np.full((n_genes, block.rows, block.columns), np.nan, np.float32)
