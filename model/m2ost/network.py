"""M2OST: a many-to-one Transformer from nested views of a spot to gene expression.

Source: Wang et al., "M2OST: Many-to-one Regression for Predicting Spatial Transcriptomics from Digital Pathology
Images", AAAI 2025 (arXiv 2409.15092). Modules bear the paper's names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .config import M2OSTConfig
from .module import Network

POSITION_STD = 0.02
"""Standard deviation at which the cls token and the position tables start."""


class DeformablePatchEmbedding(nn.Module):
    """Cut each view into patches whose size shrinks towards the spot, and embed them (DPE).

    Level i yields the tokens ``[cls, patches of p/2^i px, …, patches of p px]``: the whole view in patches of p px,
    and for j = 1 … i its centre of side ``image_px/2^j`` in patches of ``p/2^j`` px. One MLP serves a patch size
    on every level; one cls parameter serves all levels; each level has its own position table. A network without DPE
    has patches of p px alone on each level, and an MLP for each.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList()
        shared = [0] * len(config.used_levels) if "dpe" in config.without else range(config.n_levels)
        for j in shared:
            patch_dim = 3 * (config.patch_px >> j) ** 2
            hidden = 3 * config.dim >> j
            self.embeddings.append(
                nn.Sequential(
                    nn.LayerNorm(patch_dim),
                    nn.Linear(patch_dim, hidden),
                    nn.GELU(),
                    nn.Linear(hidden, config.dim),
                    nn.LayerNorm(config.dim),
                )
            )
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.positions = nn.ParameterList(
            nn.Parameter(torch.empty(1, config.sequence_length(level), config.dim)) for level in config.used_levels
        )
        for parameter in [self.cls_token, *self.positions]:
            nn.init.trunc_normal_(parameter, std=POSITION_STD)

    def patches(self, view: Tensor, j: int) -> Tensor:
        """Flatten the ``j``-th patching of a view.

        Parameters
        ----------
        view : Tensor, float, shape (B, image_px, image_px, 3)
        j : int
            0 for the whole view; j for the centre of side ``image_px / 2^j``.

        Returns
        -------
        Tensor, shape (B, tokens, 3·(patch_px/2^j)²)
            Each patch flattened row, column, channel.
        """
        side, patch = self.config.image_px >> j, self.config.patch_px >> j
        start = (self.config.image_px - side) // 2
        grid = side // patch
        centre = view[:, start : start + side, start : start + side]
        split = centre.reshape(-1, grid, patch, grid, patch, 3).permute(0, 1, 3, 2, 4, 5)
        return split.reshape(-1, grid * grid, 3 * patch * patch)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Embed ``n_levels`` views, each (B, image_px, image_px, 3) in [0, 1]: (B, n_i, dim) a level that is used."""
        sequences, own = [], "dpe" in self.config.without
        for number, (level, table) in enumerate(zip(self.config.used_levels, self.positions, strict=True)):
            tokens = [
                self.embeddings[number if own else j](self.patches(views[level], j))
                for j in self.config.patchings(level)
            ]
            cls = self.cls_token.expand(tokens[0].shape[0], -1, -1)
            sequences.append(self._drop(torch.cat([cls, *reversed(tokens)], dim=1) + table))
        return sequences

    def _drop(self, sequence: Tensor) -> Tensor:
        """In training, leave out a share ``token_drop`` of the patch tokens, drawn anew for each spot; never cls."""
        if not self.training or self.config.token_drop == 0:
            return sequence
        batch, n, dim = sequence.shape
        kept = max(1, round((n - 1) * (1 - self.config.token_drop)))
        draw = 1 + torch.rand(batch, n - 1, device=sequence.device).topk(kept, dim=1).indices
        rows = torch.cat([draw.new_zeros(batch, 1), draw], dim=1)
        return sequence.gather(1, rows[:, :, None].expand(-1, -1, dim))


class _Attention(nn.Module):
    """Heads of scaled dot-product attention, split and merged; no projections."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.reshape(-1, x.shape[1], self.heads, self.head_dim).transpose(1, 2)

        out = scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask)
        return out.transpose(1, 2).reshape(-1, q.shape[1], self.heads * self.head_dim)


class IntraLevelTokenMixing(nn.Module):
    """Self-attention within each level, then one feed-forward network shared by the levels (ITMM).

    In training, a share ``mask_ratio`` of the attention entries is hidden at random (the paper's random-mask
    self-attention); a token always sees itself. At inference nothing is hidden.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.mask_ratio = config.mask_ratio
        self.attention = _Attention(config.heads, config.head_dim)
        self.qkv = nn.ModuleList(nn.Linear(config.dim, 3 * inner, bias=False) for _ in config.used_levels)
        self.out = nn.ModuleList(nn.Linear(inner, config.dim) for _ in config.used_levels)
        # The authors' checkpoints carry this norm and never apply it; it is kept, frozen, so that weights convert
        # without a remainder and the parameter count is theirs.
        self.unused_norm = nn.LayerNorm(3 * config.dim).requires_grad_(False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(),
            nn.Linear(config.ffn_dim, config.dim),
            nn.GELU(),
        )

    def _mask(self, x: Tensor) -> Tensor | None:
        if not self.training or self.mask_ratio == 0:
            return None
        n = x.shape[1]
        visible = torch.rand(x.shape[0], 1, n, n, device=x.device) >= self.mask_ratio
        return visible | torch.eye(n, dtype=torch.bool, device=x.device)

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Mix sequences (B, n_i, dim); the shapes stay."""
        mixed = []
        for x, to_qkv, to_out in zip(sequences, self.qkv, self.out, strict=True):
            q, k, v = to_qkv(x).chunk(3, dim=-1)
            x = x + to_out(self.attention(q, k, v, self._mask(x)))
            mixed.append(x + self.feed_forward(x))
        return mixed


class PlainTokenMixing(nn.Module):
    """An ordinary transformer block for each level, in place of ITMM.

    The article does not tell what it compares with: parameters as many as its table's come of twice the heads and a
    feed-forward network of four times the width.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        dim, heads, levels = config.dim, 2 * config.heads, config.used_levels
        inner = heads * config.head_dim
        self.attention = _Attention(heads, config.head_dim)
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in levels)
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * inner, bias=False) for _ in levels)
        self.out = nn.ModuleList(nn.Linear(inner, dim) for _ in levels)
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in levels
        )

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Mix sequences (B, n_i, dim); the shapes stay."""
        mixed = []
        for x, norm, to_qkv, to_out, feed in zip(
            sequences, self.norm, self.qkv, self.out, self.feed_forward, strict=True
        ):
            x = x + to_out(self.attention(*to_qkv(norm(x)).chunk(3, dim=-1)))
            mixed.append(x + feed(x))
        return mixed


class CrossLevelTokenMixing(nn.Module):
    """Every level attends to each of the others; the results replace it, without a residual (CTMM)."""

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        inner, levels = config.heads * config.head_dim, config.used_levels
        self.norm = nn.LayerNorm(config.dim)
        self.attention = _Attention(config.heads, config.head_dim)
        self.q = nn.ModuleList(nn.Linear(config.dim, inner, bias=False) for _ in levels)
        self.k = nn.ModuleList(nn.Linear(config.dim, inner, bias=False) for _ in levels)
        self.v = nn.ModuleList(nn.Linear(config.dim, inner, bias=False) for _ in levels)
        self.out = nn.ModuleList(nn.Linear((len(levels) - 1) * inner, config.dim) for _ in levels)

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Mix sequences (B, n_i, dim); the shapes stay."""
        normed = [self.norm(x) for x in sequences]
        keys = [to_k(x) for to_k, x in zip(self.k, normed, strict=True)]
        values = [to_v(x) for to_v, x in zip(self.v, normed, strict=True)]
        mixed = []
        for level, (x, to_q, to_out) in enumerate(zip(normed, self.q, self.out, strict=True)):
            query = to_q(x)
            others = [j for j in range(len(normed)) if j != level]
            mixed.append(to_out(torch.cat([self.attention(query, keys[j], values[j]) for j in others], dim=-1)))
        return mixed


class CrossLevelChannelMixing(nn.Module):
    """Reweight the channels of every level from the means of all levels, squeeze-and-excitation style (CCMM)."""

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        width = len(config.used_levels) * config.dim
        self.excite = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.channel_dim),
            nn.GELU(),
            nn.Linear(config.channel_dim, width),
            nn.Sigmoid(),
        )

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Reweight sequences (B, n_i, dim); the shapes stay."""
        means = torch.cat([x.mean(dim=1, keepdim=True) for x in sequences], dim=-1)
        weights = self.excite(means).chunk(len(sequences), dim=-1)
        return [x * a + x for x, a in zip(sequences, weights, strict=True)]


class EncoderBlock(nn.Module):
    """ITMM, CTMM, CCMM, but for those that the network goes without.

    A single level has no other to attend to: its blocks have no CTMM.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        without, several = config.without, len(config.used_levels) > 1
        self.intra = PlainTokenMixing(config) if "itmm" in without else IntraLevelTokenMixing(config)
        self.cross = CrossLevelTokenMixing(config) if several and "ctmm" not in without else nn.Identity()
        self.channel = nn.Identity() if "ccmm" in without else CrossLevelChannelMixing(config)

    def forward(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Mix sequences (B, n_i, dim); the shapes stay."""
        mixed: list[Tensor] = self.channel(self.cross(self.intra(sequences)))
        return mixed


class M2OST(Network):
    """Predict the expression of a gene panel at a spot from its nested views.

    Parameters
    ----------
    config : M2OSTConfig
        Sizes; the defaults give the paper's model with 7,043,466 parameters.
    """

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        self.config: M2OSTConfig = config
        self.embed = DeformablePatchEmbedding(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(len(config.used_levels) * config.dim, config.n_genes)

    def forward(self, *views: Tensor) -> Tensor:
        """Predict expression.

        Parameters
        ----------
        *views : Tensor, shape (B, image_px, image_px, 3)
            The ``n_levels`` views, fine to coarse, RGB; uint8, or float already in [0, 1].

        Returns
        -------
        Tensor, float, shape (B, n_genes)
            The target that the network was trained on; no activation.

        Raises
        ------
        ValueError
            If the number of views is not ``n_levels``.
        """
        if len(views) != self.config.n_levels:
            raise ValueError(f"this network takes {self.config.n_levels} views, got {len(views)}")
        dtype = self.head.weight.dtype
        scaled = [v.to(dtype) / 255 if v.dtype == torch.uint8 else v for v in views]
        sequences = self.embed(scaled)
        for block in self.blocks:
            sequences = block(sequences)
        prediction: Tensor = self.head(torch.cat([self.norm(x)[:, 0] for x in sequences], dim=-1))
        return prediction
