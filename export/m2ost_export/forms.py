"""A network in the form that is exported: M2OST's own, or the network as it stands."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from m2ost.architecture import NOTHING
from m2ost.module import Network, OneViewNetwork
from m2ost.network import M2OST
from m2ost.symmetries import with_test_time
from m2ost.systems.registry import system_of
from m2ost_contract import ViewGeometry
from torch import Tensor, nn

from .errors import ExportError
from .fused import PRECISIONS, FusedM2OST
from .probes import Views, probe_views


class PlainNetwork(Network):
    """A network as it stands, in a precision and with what is averaged at inference.

    Pixels are normalised, and the parts that the registry names computed, in float32 at every precision.

    Parameters
    ----------
    model : Network
        In eval mode, float32; for a reduced precision one of one view.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.
    test_time : str
        One of :data:`m2ost.architecture.TEST_TIMES`.
    """

    def __init__(self, model: Network, precision: str = "fp32", test_time: str = NOTHING) -> None:
        super().__init__()
        self.config, self.precision = model.config, precision
        if precision != "fp32":
            model, original = deepcopy(model).to(PRECISIONS[precision]), model
            for name in ("normalise", *system_of(model.config).float32):
                model.set_submodule(name, _InFloat32.of(original.get_submodule(name)))
        self.network = with_test_time(model, test_time)

    def forward(self, *views: Tensor) -> Tensor:
        """Predict expression, float32; shapes as the network's."""
        expression: Tensor = self.network(*views)
        return expression.float()


class _InFloat32(nn.Module):
    """A part that computes in float32 whatever it is given."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    @classmethod
    def of(cls, part: nn.Module) -> nn.Module:
        """The part, copied; one without weights converts for itself."""
        return cls(deepcopy(part)) if any(True for _ in part.parameters()) else deepcopy(part)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part(x.float())
        return result


def engine_form(model: Network, precision: str, test_time: str = NOTHING) -> FusedM2OST | PlainNetwork:
    """The network in the form that its system is exported in.

    Raises
    ------
    ExportError
        If its system is not served, or cannot average what is asked for.
    """
    if isinstance(model, M2OST):
        if test_time != NOTHING:
            raise ExportError(f"refused: {test_time} is for the other systems; M2OST's graph is made without it")
        if model.config.without:
            if precision != "fp32":
                raise ExportError(f"refused: {_lacking(model)} is exported in fp32 alone, not as {precision}")
            return PlainNetwork(model).eval()
        return FusedM2OST(model, precision).eval()
    if isinstance(model, OneViewNetwork):
        if precision == "bf16" and any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
            title = system_of(model.config).title
            raise ExportError(
                f"refused: {title}'s batch norms are folded in float32 by the exporter; take fp16 or fp32"
            )
        return PlainNetwork(model, precision, test_time).eval()
    raise ExportError(
        f"refused: {system_of(model.config).title} predicts a slide as a whole, in two graphs and not one"
    )


def comparable_views(model: Network) -> Callable[[ViewGeometry, int, int], Views]:
    """Makes probe views on which the network and its graph can be compared.

    Rows whose outputs rounding can turn, such as those between two spots of a bank, are replaced by another.
    """

    def make(geometry: ViewGeometry, batch: int, seed: int) -> Views:
        views = probe_views(geometry, batch, seed)
        with torch.inference_mode():
            decided = model.decided(*map(torch.from_numpy, views)).numpy()
        if not decided.any():
            return views
        rows = np.where(decided, np.arange(batch), np.flatnonzero(decided)[0])
        return [view[rows] for view in views]

    return make


def only_m2ost(model: Network, what: str) -> M2OST:
    """The network, if it is an M2OST.

    Parameters
    ----------
    model : Network
    what : str
        What is asked of it, for the message.

    Raises
    ------
    ExportError
        If it is one of another system, or goes without a module.
    """
    if not isinstance(model, M2OST):
        raise ExportError(f"refused: {what} is M2OST's alone, and this is {system_of(model.config).title}")
    if model.config.without:
        raise ExportError(f"refused: {what} is M2OST's with all of its modules, and this is {_lacking(model)}")
    return model


def _lacking(model: M2OST) -> str:
    return f"an M2OST without {', '.join(model.config.without)}"
