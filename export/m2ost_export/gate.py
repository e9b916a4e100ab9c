"""The gate of a reduced precision: what float16 or bfloat16 changes, gene by gene, and when that is too much.

Two things are compared with the float32 network, as neither alone would do:

- the arithmetic: :class:`FusedM2OST` in PyTorch, which stores every step in the reduced type as a strongly typed engine
  must. A value beyond the type's range becomes infinite here as it would there;
- the graph: the ONNX file in ONNX Runtime. On a CPU that computes float16 in float32 and hides overflow, and has no
  bfloat16 kernels at all (there the graph's float32 twin runs): it shows that the file is the right program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from m2ost.metrics import pearson
from m2ost.module import Network
from m2ost_contract import EXPRESSION

from .forms import PlainNetwork
from .fused import FusedM2OST
from .graph import PARITY_BATCHES
from .onnx_files import as_float32
from .probes import N_EXTREMES, Views, probe_views, smooth_rows

MIN_R_GENE = 0.9999
SPOT_BATCH = 16

Predict = Callable[[Views], Any]


@dataclass(frozen=True)
class Agreement:
    """How far something is from the float32 network.

    Parameters
    ----------
    what : str
        ``arithmetic`` or ``graph``.
    views : str
        On which views: ``made``, or the slide's name.
    rows : int
        Number of spots.
    max_abs_diff : float
        Largest absolute difference of any output; NaN where an output is not finite.
    min_r_gene : float
        Smallest Pearson's r per gene across the spots; of made views, across those that are no extremes.
    worst_gene : str
        Where that is.
    """

    what: str
    views: str
    rows: int
    max_abs_diff: float
    min_r_gene: float
    worst_gene: str

    @property
    def finite(self) -> bool:
        """Whether every output was a number."""
        return bool(np.isfinite(self.max_abs_diff))

    def in_words(self) -> str:
        """One line for a person."""
        apart = f"at most {self.max_abs_diff:.1e} apart" if self.finite else "outputs that are not finite"
        lowest = f"r per gene at least {self.min_r_gene:.6f} ({self.worst_gene})"
        return f"{self.what}, {self.rows} spots ({self.views}): {lowest}, {apart}"


@dataclass(frozen=True)
class Gate:
    """What was measured of a reduced precision, and whether it passes.

    Parameters
    ----------
    agreements : tuple of Agreement
        Everything that was compared.
    decided_on : str
        The views whose r per gene decides: those of a slide where one was given, else the made ones. Outputs must be
        finite on all.
    """

    agreements: tuple[Agreement, ...]
    decided_on: str

    @property
    def passed(self) -> bool:
        """Whether all is finite, and r per gene at least ``MIN_R_GENE`` where that decides."""
        return all(a.finite and (a.views != self.decided_on or a.min_r_gene >= MIN_R_GENE) for a in self.agreements)

    def in_words(self) -> str:
        """All figures, a line each."""
        return "\n".join(f"  {a.in_words()}" for a in self.agreements)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for the manifest."""
        return {
            "reference": "PyTorch, float32",
            "min_r_gene": MIN_R_GENE,
            "decided_on": self.decided_on,
            "measured": [asdict(a) for a in self.agreements],
        }


def measure_gate(
    model: Network,
    fused: FusedM2OST | PlainNetwork,
    graph: onnx.ModelProto,
    genes: Sequence[str],
    *,
    spots: tuple[str, Views] | None = None,
) -> Gate:
    """Compare a reduced precision with the float32 network.

    Parameters
    ----------
    model : Network
        The reference, float32.
    fused : FusedM2OST or PlainNetwork
        The same weights in the reduced precision.
    graph : ModelProto
        Its ONNX graph.
    genes : sequence of str
        The panel, in output order.
    spots : (str, list of ndarray), optional
        Name and views of real spots. Where they decide, made views only show that no extreme overflows, and one batch
        of them is enough.
    """
    session = ort.InferenceSession(_runnable(graph, fused.precision), providers=["CPUExecutionProvider"])
    names = model.config.views.names
    subjects: dict[str, Predict] = {
        "arithmetic": _by_pytorch(fused),
        "graph": lambda views: session.run([EXPRESSION], dict(zip(names, views, strict=True)))[0],
    }
    batches = PARITY_BATCHES if spots is None else (2 * N_EXTREMES,)
    made = [probe_views(model.config.views, batch, batch) for batch in batches]
    smooth = np.concatenate([smooth_rows(batch) for batch in batches])
    sets = [("made", made, smooth)]
    if spots is not None:
        name, views = spots
        sets.append((name, _in_batches(views), np.ones(len(views[0]), bool)))
    agreements = []
    for name, parts, counted in sets:
        expected = _predict(_by_pytorch(model), parts)
        for what, predict in subjects.items():
            agreements.append(agreement(what, name, expected, _predict(predict, parts), genes, counted=counted))
    return Gate(tuple(agreements), decided_on=sets[-1][0])


def agreement(
    what: str, views: str, expected: Any, found: Any, genes: Sequence[str], *, counted: Any = slice(None)
) -> Agreement:
    """How far outputs are from the float32 network's.

    Parameters
    ----------
    what, views : str
        See :class:`Agreement`.
    expected, found : ndarray of float32, shape (n, G)
    genes : sequence of str
        The panel, in output order.
    counted : index
        The rows that r per gene is taken across.
    """
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(found - expected).max())
        r = pearson(expected[counted], found[counted], 0)
    # A gene that the reference holds constant on these spots tells nothing; where no gene varies, none passes.
    worst = int(np.where(np.isnan(r), np.inf, r).argmin())
    finite = np.isfinite(found).all()
    return Agreement(
        what,
        views,
        len(found),
        difference if finite else float("nan"),
        float(r[worst]) if finite else float("nan"),
        genes[worst],
    )


def predict_all(network: torch.nn.Module, views: Views) -> Any:
    """What a network predicts in PyTorch, float32, shape (n, G), in batches of ``SPOT_BATCH``."""
    return _predict(_by_pytorch(network), _in_batches(views))


def _in_batches(views: Views) -> list[Views]:
    return [[view[first : first + SPOT_BATCH] for view in views] for first in range(0, len(views[0]), SPOT_BATCH)]


def _predict(predict: Predict, parts: Sequence[Views]) -> Any:
    return np.concatenate([np.asarray(predict(part), np.float32) for part in parts])


def _by_pytorch(network: torch.nn.Module) -> Predict:
    def predict(views: Views) -> Any:
        with torch.inference_mode():
            return network(*(torch.from_numpy(np.ascontiguousarray(view)) for view in views)).numpy()

    return predict


def _runnable(graph: onnx.ModelProto, precision: str) -> bytes:
    """What ONNX Runtime's CPU kernels can run of ``graph``."""
    return bytes((as_float32(graph) if precision == "bf16" else graph).SerializeToString())
