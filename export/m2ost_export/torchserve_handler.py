"""TorchServe's handler of an M2OST archive: views in, expression out.

Copied into the archive as ``handler.py``: imports PyTorch and NumPy only, and defines one class, as TorchServe wants.

A request's body is an ``.npz`` with VIEW0, VIEW1 …, uint8 (n, size_px, size_px, 3), fine to coarse. The answer is an
``.npz`` with EXPRESSION, float32 (n, G), and GENES, the names of its columns. A request that is not of this form is
answered 400 and costs no other request of its batch anything.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

_HEADERS_BYTES = 1 << 16
"""More than the headers of all arrays of a request take."""


class M2OSTHandler:
    """Runs the archive's exported program."""

    def initialize(self, context: Any) -> None:
        """Load the program onto the worker's GPU, if TorchServe gave it one, else the CPU.

        Parameters
        ----------
        context : ts.context.Context
            Its ``system_properties`` name the archive's folder and the GPU.
        """
        properties = context.system_properties
        folder, gpu = Path(properties["model_dir"]), properties.get("gpu_id")
        self._card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        self._device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        program = torch.export.load(folder / "model.pt2")
        self._network = program.module().to(self._device)
        size = self._card["views"]["size_px"]
        self._shape = (size, size, 3)
        self._names = [f"VIEW{i}" for i in range(len(self._card["views"]["factors"]))]

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer a batch of requests.

        Parameters
        ----------
        data : list of dict
            A request each; its body under ``body`` or ``data``.
        context : ts.context.Context
            Receives the status of a request that is refused.

        Returns
        -------
        list of bytes or str
            An answer a request, in their order.
        """
        answers: list[Any] = [None] * len(data)
        views: dict[int, list[np.ndarray[Any, Any]]] = {}
        for index, request in enumerate(data):
            try:
                views[index] = self._read(request.get("body") or request.get("data") or b"")
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                context.set_response_status(400, "Bad Request", index)
                answers[index] = f"not a request for this model: {error}"
        if views:
            scored = self._run([np.concatenate(parts) for parts in zip(*views.values(), strict=True)])
            ends = np.cumsum([len(parts[0]) for parts in views.values()])
            for index, expression in zip(views, np.split(scored, ends[:-1]), strict=True):
                answers[index] = self._write(expression)
                context.set_response_content_type(index, "application/octet-stream")
        return answers

    def _read(self, body: Any) -> list[np.ndarray[Any, Any]]:
        """The views of one request; what it unpacks to is bounded before it is unpacked."""
        most = self._card["max_rows"] * len(self._names) * int(np.prod(self._shape)) + _HEADERS_BYTES
        with zipfile.ZipFile(io.BytesIO(bytes(body))) as archive:
            if sum(member.file_size for member in archive.infolist()) > most:
                raise ValueError(f"more than {self._card['max_rows']} rows")
        with np.load(io.BytesIO(bytes(body)), allow_pickle=False) as arrays:
            if sorted(arrays.files) != self._names:
                raise ValueError(f"its arrays are {sorted(arrays.files)}, not {self._names}")
            views = [arrays[name] for name in self._names]
        rows = len(views[0])
        for name, view in zip(self._names, views, strict=True):
            if view.dtype != np.uint8 or view.shape != (rows, *self._shape):
                raise ValueError(f"{name} is {view.dtype} {view.shape}, not uint8 {(rows, *self._shape)}")
        if not 0 < rows <= self._card["max_rows"]:
            raise ValueError(f"{rows} rows; 1 to {self._card['max_rows']} may be sent")
        return views

    def _run(self, views: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Score rows of several requests together, never more at once than the program takes."""
        parts, most = [], self._card["max_rows"]
        with torch.inference_mode():
            for first in range(0, len(views[0]), most):
                batch = [torch.from_numpy(view[first : first + most]).to(self._device) for view in views]
                parts.append(self._network(*batch).float().cpu().numpy())
        return np.concatenate(parts)

    def _write(self, expression: np.ndarray[Any, Any]) -> bytes:
        answer = io.BytesIO()
        np.savez(answer, EXPRESSION=expression, GENES=np.array(self._card["genes"]))
        return answer.getvalue()
