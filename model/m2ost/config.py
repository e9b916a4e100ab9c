"""Architecture of an M2OST, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from m2ost_contract import ViewGeometry

from .architecture import Architecture

MODULES = ("dpe", "itmm", "ctmm", "ccmm")
"""What the article takes away in turn: patches that shrink towards the spot, and the three mixings of a block."""


@dataclass(frozen=True)
class M2OSTConfig(Architecture):
    """Sizes of an M2OST; the defaults are the paper's model.

    Parameters
    ----------
    n_genes : int
        Outputs G.
    n_levels : int
        Nested views, 1 to 4, fine to coarse; the window of each is twice the last one's.
    image_px : int
        Side of every view; a multiple of ``patch_px``.
    patch_px : int
        Side of the patches cut from whole views; halved for each inner centre.
    dim : int
        Width of a token.
    depth : int
        Encoder blocks N.
    heads, head_dim : int
        Attention heads and their width, per level.
    ffn_dim : int
        Hidden width of the intra-level feed-forward network.
    channel_dim : int
        Hidden width of the cross-level channel mixing.
    mask_ratio : float
        Share of attention entries hidden at random in training, in [0, 1). Nothing is masked at inference.
    token_drop : float
        Share of each level's patch tokens left out at random in training, in [0, 1): a regulariser that also makes
        training cheaper (PatchDropout, Liu et al., WACV 2023). Nothing is left out at inference.
    levels : tuple of int
        Which of the nested views are looked at, in rising order up to the last one; all where none is named. The
        network takes all the same.
    without : tuple of str
        Of :data:`MODULES`, what the network goes without. In place of ``dpe`` each level has patches of ``patch_px``
        alone and an embedding of its own; in place of ``itmm`` an ordinary transformer block of its own, with twice
        the heads and four times ``dim``; ``ctmm`` and ``ccmm`` are left out.

    Raises
    ------
    ValueError
        If a size cannot be built; says which.
    """

    n_genes: int = 250
    n_levels: int = 3
    image_px: int = 224
    patch_px: int = 16
    dim: int = 192
    depth: int = 4
    heads: int = 3
    head_dim: int = 64
    ffn_dim: int = 128
    channel_dim: int = 384
    mask_ratio: float = 0.0
    token_drop: float = 0.0
    levels: tuple[int, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("mask_ratio", "token_drop"):
                if not 0 <= value < 1:
                    raise ValueError(f"{f.name} must lie in [0, 1), not {value}")
            elif f.name not in ("levels", "without") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{f.name} must be a positive integer, not {value!r}")
        if self.image_px % self.patch_px:
            raise ValueError(f"image_px {self.image_px} is not a multiple of patch_px {self.patch_px}")
        if self.patch_px % 2 ** (self.n_levels - 1):
            raise ValueError(
                f"n_levels {self.n_levels}: patch_px {self.patch_px} cannot be halved {self.n_levels - 1} times"
            )
        if self.n_levels > 1 and (self.image_px * (2 ** (self.n_levels - 1) - 1)) % 2**self.n_levels:
            raise ValueError(f"image_px {self.image_px} has no centred window for {self.n_levels} levels")
        if self.levels and (
            list(self.levels) != sorted({*self.levels} & {*range(self.n_levels)})
            or self.levels[-1] != self.n_levels - 1
        ):
            raise ValueError(
                f"levels must rise from 0 or more to {self.n_levels - 1}, the last of n_levels, not {self.levels}"
            )
        if not {*self.without} <= {*MODULES} or len({*self.without}) < len(self.without):
            raise ValueError(f"without must be of {', '.join(MODULES)}, each once, not {self.without}")

    @property
    def used_levels(self) -> tuple[int, ...]:
        """The levels that are looked at."""
        return self.levels or tuple(range(self.n_levels))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; ``levels`` and ``without`` are written where there are any."""
        return {k: v for k, v in asdict(self).items() if v or k not in ("levels", "without")}

    @property
    def views(self) -> ViewGeometry:
        """The views that this network takes."""
        return ViewGeometry(self.image_px, tuple(2**i for i in range(self.n_levels)))

    @property
    def tokens_per_patching(self) -> int:
        """Tokens of one patching of one view: the same for every patch size."""
        return (self.image_px // self.patch_px) ** 2

    def patchings(self, level: int) -> range:
        """How often ``patch_px`` is halved in the patchings of a level: 0 … level, or 0 alone without ``dpe``."""
        return range(1 if "dpe" in self.without else level + 1)

    def sequence_length(self, level: int) -> int:
        """Tokens of a level, cls included: 197, 393, 589 in the paper."""
        return 1 + len(self.patchings(level)) * self.tokens_per_patching
