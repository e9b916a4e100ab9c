"""What every network is to the code around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .architecture import Architecture, Normalisation, OneView


class Network(nn.Module):
    """A network with the sizes it was built to."""

    config: Architecture

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Inputs for ``rows`` spots, of the shapes and types that the network takes; their values mean nothing."""
        views = self.config.views
        return tuple(torch.empty(rows, *views.shape) for _ in views.names)

    def decided(self, *views: Tensor) -> Tensor:
        """Whether a row's outputs follow its inputs smoothly, or hang on a choice that rounding can turn: bool (B,)."""
        return torch.ones(len(views[0]), dtype=torch.bool)

    def bank_sha256(self, genes: Sequence[str]) -> str:
        """Identity of what the network looks up, as values of these genes; empty where it looks up nothing."""
        return ""


class Normalise(nn.Module):
    """Turn views into what a network takes. Its constants are the card's and no part of a state dict."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalisation = normalisation
        std = torch.tensor(normalisation.std)
        factor = 255 / normalisation.scale / std
        self.register_buffer("factor", factor.reshape(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(normalisation.mean) / std).reshape(3, 1, 1), persistent=False)
        self.factor: Tensor
        self.shift: Tensor

    def forward(self, view: Tensor) -> Tensor:
        """Normalise one view.

        Parameters
        ----------
        view : Tensor, shape (B, s, s, 3)
            RGB; uint8, or float already in [0, 1].

        Returns
        -------
        Tensor of float32, shape (B, 3, s, s)
            The first of the last two axes is y, or x where the layout is ``x_major``.
        """
        pixels = view.to(torch.float32) / 255 if view.dtype == torch.uint8 else view.float()
        if self.normalisation.channel_order == "BGR":
            pixels = pixels.flip(-1)
        axes = (0, 3, 1, 2) if self.normalisation.layout == "row_major" else (0, 3, 2, 1)
        return pixels.permute(axes) * self.factor + self.shift


class OneViewNetwork(Network):
    """A network that predicts a spot from one view of it; what it computes is its ``predict``."""

    def __init__(self, config: OneView) -> None:
        super().__init__()
        self.config: OneView = config
        self.normalise = Normalise(config.normalisation)

    def forward(self, *views: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        *views : Tensor, shape (B, image_px, image_px, 3)
            One view, RGB; uint8, or float already in [0, 1].

        Returns
        -------
        Tensor, float, shape (B, n_genes)

        Raises
        ------
        ValueError
            If there is not exactly one view.
        """
        if len(views) != 1:
            raise ValueError(f"this network takes 1 view, got {len(views)}")
        return self.predict(self.pixels(views[0]))

    def pixels(self, view: Tensor) -> Tensor:
        """A view as the network takes it: (B, 3, s, s) in the type of its weights."""
        taken: Tensor = self.normalise(view)
        return taken.to(next(self.parameters()).dtype)

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from what :meth:`pixels` gives."""
        raise NotImplementedError
