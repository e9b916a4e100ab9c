"""Hist2ST's further losses: of its counts, and of its own answers to varied views.

Source: Zeng et al., Briefings in Bioinformatics 2022; built from a description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, logsigmoid, softplus

from ..systems.hist2st import Hist2St
from .objective import Objective, autocast

MEAN_RANGE, DISPERSION_RANGE = (1e-5, 1e6), (1e-4, 1e4)

GREY_SHARE, FLIP_SHARE, MOST_TURN_DEG = 0.1, 0.2, 90.0
"""How often a slide's views are made grey, or mirrored, and how far they are turned either way."""

LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Hist2StLosses:
    """What Hist2ST makes small beside its error; no other system has such.

    Parameters
    ----------
    counts : float
        Weight of the negative log-likelihood of zero-inflated counts; 0 for none.
    distillation : float
        Weight of the distance to the mean answer to varied views; 0 for none.
    distilled : int
        Variations a slide, each of which costs a forward pass.
    """

    counts: float = 0.25
    distillation: float = 0.5
    distilled: int = 5

    def __post_init__(self) -> None:
        if self.counts < 0 or self.distillation < 0:
            raise ValueError("hist2st.counts and hist2st.distillation must not be negative")
        if self.distilled < 1:
            raise ValueError(f"hist2st.distilled must be positive, not {self.distilled}")

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.counts or self.distillation)


class Hist2StObjective(Objective):
    """A slide's loss: the error, and :class:`Hist2StLosses`."""

    def __init__(self, network: Hist2St, weight: Tensor, precision: str, loss: str, losses: Hist2StLosses) -> None:
        super().__init__(network, weight, precision, loss)
        self.losses = losses

    def forward(
        self, views: Tensor, target: Tensor, places: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        """See :class:`~m2ost.training.objective.Objective`."""
        network, losses = self.network, self.losses
        assert isinstance(network, Hist2St)
        assert places is not None
        assert counts is not None
        predicted, hidden = self._answer(views[:, 0], places)
        loss = self.error(predicted, target)
        if losses.counts:
            loss = loss + losses.counts * zero_inflated_loss(
                counts, network.mean(hidden), network.disp(hidden), network.pi(hidden)
            )
        if losses.distillation:
            answers, scores = [], []
            for _ in range(losses.distilled):
                answer, seen = self._answer(vary_slide(views[:, 0]), places)
                answers.append(answer)
                scores.append(network.coef(seen))
            shares = torch.stack(scores).softmax(dim=0)
            teacher = (torch.stack(answers) * shares).sum(dim=0)
            loss = loss + losses.distillation * (teacher - predicted).square().mean()
        return loss

    def _answer(self, view: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Expression (n, genes) and what it is read from (n, dim), both float32."""
        network = self.network
        assert isinstance(network, Hist2St)
        with autocast(view.device, self.precision):
            hidden = network.hidden(network.patches(view), places)
            return network.gene_head(hidden).float(), hidden.float()


def zero_inflated_loss(counts: Tensor, mean: Tensor, dispersion: Tensor, dropout: Tensor) -> Tensor:
    """Negative log-likelihood of counts under a zero-inflated negative binomial distribution, a mean over all.

    Parameters
    ----------
    counts : Tensor, float32, shape (n, genes)
        Of the spots of one slide. A spot's mean is scaled by its total, in units of the slide's median total.
    mean, dispersion, dropout : Tensor, float32, shape (n, genes)
        What the heads give: the logarithm of the mean, what ``softplus`` makes the dispersion of, and the log-odds of a
        zero beside those of the distribution.
    """
    totals = counts.sum(dim=1, keepdim=True)
    expected = mean.exp().clamp(*MEAN_RANGE) * totals / totals.median()
    shape = softplus(dispersion).clamp(*DISPERSION_RANGE)
    log_zero = shape * (shape.log() - (shape + expected).log())
    log_some = (
        torch.lgamma(counts + shape)
        - torch.lgamma(shape)
        - torch.lgamma(counts + 1)
        + log_zero
        + counts * (expected.log() - (shape + expected).log())
    )
    stays = logsigmoid(-dropout)
    likelihood = torch.where(counts == 0, torch.logaddexp(logsigmoid(dropout), stays + log_zero), stays + log_some)
    return -likelihood.mean()


def vary_slide(view: Tensor) -> Tensor:
    """A slide's views varied by one draw for all: perhaps grey, perhaps mirrored, turned about their centres.

    Parameters
    ----------
    view : Tensor, float, shape (n, s, s, 3)
        In [0, 1]. Draws are PyTorch's own, as those of dropout are.

    Returns
    -------
    Tensor, the same shape
        Corners that nothing is turned into are black.
    """
    grey, flip, angle = torch.rand(3).tolist()
    if grey < GREY_SHARE:
        view = (view * view.new_tensor(LUMINANCE)).sum(dim=-1, keepdim=True).expand_as(view)
    if flip < FLIP_SHARE:
        view = view.flip(2)
    turn = math.radians(MOST_TURN_DEG * (2 * angle - 1))
    cos, sin = math.cos(turn), math.sin(turn)
    pixels = view.permute(0, 3, 1, 2)
    turned = view.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(view), -1, -1)
    grid = affine_grid(turned, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="nearest", align_corners=False).permute(0, 2, 3, 1)
