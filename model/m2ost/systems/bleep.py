"""BLEEP: images and expression in one space; a spot is the mean of the training spots that lie nearest to it.

Source: Xie et al., "Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
Learning", NeurIPS 2023. Modules bear the names of the authors' state dicts, whose image branch is timm's ResNet-50.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from ..architecture import IMAGENET, Normalisation
from ..module import OneViewNetwork
from .resnet50 import ResNet50Config, trunk, trunk_sizes
from .system import PLAIN, Names, Shapes, System, translator

DROPOUT = 0.1

IMAGENET_ON_BGR = replace(IMAGENET, channel_order="BGR")
"""The authors read images as BGR, and normalised them as if they were RGB."""

CLEARLY = 1e-5
"""Difference of two cosines that no rounding in float32 turns."""

_EMBEDDED_AT_ONCE = 1024


@dataclass(frozen=True)
class BleepConfig(ResNet50Config):
    """Sizes of a BLEEP.

    Parameters
    ----------
    n_genes, image_px, layers, width, normalisation
        See :class:`~m2ost.systems.resnet50.ResNet50Config`; ``normalisation`` has the order BGR.
    embedding_dim : int
        Width of the space that both branches meet in.
    neighbours : int
        Training spots that a prediction is the mean of; at most ``bank_rows``.
    bank_rows : int
        Training spots in the bank.
    """

    normalisation: Normalisation = IMAGENET_ON_BGR
    embedding_dim: int = 256
    neighbours: int = 50
    bank_rows: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours > self.bank_rows:
            raise ValueError(f"a bank of {self.bank_rows} spots has no {self.neighbours} nearest ones")

    @property
    def head(self) -> dict[str, Any]:
        """Retrieval, and what it retrieves."""
        return {
            "type": "retrieval",
            "neighbours": self.neighbours,
            "weighting": "mean",
            "rows": self.bank_rows,
            "holds": "measured expression of the training spots: the licence and privacy of that data apply",
        }


class _Projection(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.projection = nn.Linear(taken, given)
        self.fc = nn.Linear(given, given)
        self.dropout = nn.Dropout(DROPOUT)
        self.layer_norm = nn.LayerNorm(given)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(x)
        embedded: Tensor = self.layer_norm(self.dropout(self.fc(gelu(projected))) + projected)
        return embedded


class Bank(nn.Module):
    """What is looked up: float32 embeddings of unit length (rows, dim), and expression (rows, genes)."""

    def __init__(self, config: BleepConfig) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.zeros(config.bank_rows, config.embedding_dim))
        self.register_buffer("expression", torch.zeros(config.bank_rows, config.n_genes))
        self.embedding: Tensor
        self.expression: Tensor


class _ImageEncoder(nn.Module):
    def __init__(self, config: BleepConfig) -> None:
        super().__init__()
        self.model = nn.Sequential(trunk(config.layers, config.width))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model(pixels)
        return features


class Bleep(OneViewNetwork):
    """Predict a spot from the training spots whose expression lies nearest to its image.

    Parameters
    ----------
    config : BleepConfig
        The defaults give 24,229,440 parameters, of which 24,098,880 are needed to predict.
    """

    def __init__(self, config: BleepConfig) -> None:
        super().__init__(config)
        self.neighbours = config.neighbours
        self.image_encoder = _ImageEncoder(config)
        self.image_projection = _Projection(config.feature_dim, config.embedding_dim)
        self.spot_projection = _Projection(config.n_genes, config.embedding_dim)
        self.bank = Bank(config)
        made_up = torch.randn(config.bank_rows, config.n_genes)
        self.fill(made_up)

    def fill(self, expression: Tensor) -> None:
        """Put training spots into the bank: their target values, float32, shape (bank_rows, n_genes)."""
        self.bank.expression.copy_(expression)
        self.embed_bank()

    def embed_bank(self) -> None:
        """Embed what is in the bank anew, as the expression branch's weights now are."""
        was_training = self.spot_projection.training
        self.spot_projection.eval()
        with torch.no_grad():
            parts = [
                normalize(self.spot_projection(e), dim=1) for e in torch.split(self.bank.expression, _EMBEDDED_AT_ONCE)
            ]
            self.bank.embedding.copy_(torch.cat(parts))
        self.spot_projection.train(was_training)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim) of normalised pixels (B, 3, s, s)."""
        embedded: Tensor = self.image_projection(self.image_encoder(pixels))
        return embedded

    def predict(self, pixels: Tensor) -> Tensor:
        """Expression (B, n_genes) from normalised pixels (B, 3, s, s)."""
        similarity = self.similarity(self.embed(pixels))
        nearest = similarity.topk(self.neighbours, dim=1).indices
        return self.bank.expression[nearest].mean(dim=1)

    def decided(self, *views: Tensor) -> Tensor:
        """Where the farthest spot that is looked up lies clearly nearer than the next."""
        if self.neighbours == len(self.bank.expression):
            return super().decided(*views)
        best = self.similarity(self.embed(self.pixels(views[0]))).topk(self.neighbours + 1, dim=1).values
        return best[:, -2] - best[:, -1] > CLEARLY

    def similarity(self, embedded: Tensor) -> Tensor:
        """Cosine of embeddings (B, embedding_dim) to every spot of the bank: float32, shape (B, bank_rows)."""
        return normalize(embedded.float(), dim=1) @ self.bank.embedding.T

    def contrast(self, view: Tensor, expression: Tensor) -> Tensor:
        """The contrastive loss of a batch: a scalar.

        Soft targets are the softmax of the mean similarity within images and within expression; gradients flow
        through them too. Embeddings are not normalised, the temperature is 1.

        Parameters
        ----------
        view : Tensor, shape (B, s, s, 3)
            As ``forward`` takes it.
        expression : Tensor, float32, shape (B, n_genes)
        """
        images = self.embed(self.pixels(view)).float()
        spots = self.spot_projection(expression).float()
        logits = spots @ images.T
        targets = ((images @ images.T + spots @ spots.T) / 2).softmax(dim=-1)
        of_spots = -(targets * logits.log_softmax(dim=-1)).sum(dim=1)
        of_images = -(targets.T * logits.T.log_softmax(dim=-1)).sum(dim=1)
        loss: Tensor = ((of_spots + of_images) / 2).mean()
        return loss

    def bank_sha256(self, genes: Sequence[str]) -> str:
        """sha256 of the panel and of the bank's two arrays."""
        digest = hashlib.sha256("\n".join(genes).encode())
        for array in (self.bank.embedding, self.bank.expression):
            digest.update(array.cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


_TRUNK = r"^(?=(?:conv1|bn1|layer\d+)\.)"

NAMES = Names(
    renames=[(r"^well_projection\.", "spot_projection."), (_TRUNK, "image_encoder.model.")],
    dropped=[r"(image_encoder\.model\.)?fc\."],
)
"""Older files call the expression branch after wells; a bare ResNet-50 is the image branch's trunk."""


def _sizes(shape: Shapes) -> BleepConfig:
    layers, width = trunk_sizes(shape, "image_encoder.model.")
    dim, n_genes = shape("spot_projection.projection.weight", 2)
    return BleepConfig(n_genes=n_genes, layers=layers, width=width, embedding_dim=dim)


TITLE = "BLEEP"

BLEEP = System(
    name="bleep",
    title=TITLE,
    config=BleepConfig,
    network=Bleep,
    form=PLAIN,
    translate=translator(TITLE, NAMES, _sizes),
    pretrained_names=NAMES,
    signature=r"image_encoder\.model\.",
    target="log1p_normalised_harmony",
    float32=("image_projection", "bank"),
    fresh=("image_projection.", "spot_projection.", "bank."),
)
