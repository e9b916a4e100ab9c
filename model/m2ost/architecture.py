"""What every architecture says of itself: its outputs, its views, and how it takes their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from m2ost_contract import ViewGeometry
from m2ost_contract.slide_level import SPOT

NOTHING, DIHEDRAL8 = "none", "dihedral8"
TEST_TIMES = (NOTHING, DIHEDRAL8)
"""What is averaged at inference: nothing, or the outputs for the eight turns and flips of a view."""


@dataclass(frozen=True)
class Normalisation:
    """What a network does to the pixels of a view before all else.

    Parameters
    ----------
    scale : int
        What 255 is divided by: 255 takes pixels to [0, 1], 1 leaves them as they are.
    mean, std : tuple of float
        Subtracted from the scaled channels, and what they are divided by then; in the network's order of channels.
    channel_order : str
        ``RGB`` or ``BGR``: in which order the network takes the channels. Views are always RGB.
    layout : str
        ``row_major``, or ``x_major`` where the network was trained on transposed images.

    Raises
    ------
    ValueError
        If a value cannot be; says which.
    """

    scale: int = 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channel_order: str = "RGB"
    layout: str = "row_major"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = tuple(float(v) for v in getattr(self, name))
            if len(value) != 3:
                raise ValueError(f"normalisation.{name} must be three numbers, not {value}")
            object.__setattr__(self, name, value)
        if min(self.std) <= 0:
            raise ValueError(f"normalisation.std must be positive, not {self.std}")
        if self.scale not in (255, 1):
            raise ValueError(f"normalisation.scale must be 255 or 1, not {self.scale}")
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"normalisation.channel_order must be RGB or BGR, not {self.channel_order!r}")
        if self.layout not in ("row_major", "x_major"):
            raise ValueError(f"normalisation.layout must be row_major or x_major, not {self.layout!r}")


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of torchvision's weights, and of most of timm's."""


class Architecture:
    """Sizes of a network: the base of every system's frozen dataclass.

    Its fields are numbers, tuples of numbers, and at most one :class:`Normalisation`.
    """

    level: ClassVar[str] = SPOT

    @property
    def n_genes(self) -> int:
        """Outputs G."""
        raise NotImplementedError

    @property
    def views(self) -> ViewGeometry:
        """The views that this network takes."""
        raise NotImplementedError

    @property
    def normalisation(self) -> Normalisation:
        """What it does to their pixels."""
        return Normalisation()

    @property
    def head(self) -> dict[str, Any]:
        """How it comes to its outputs."""
        return {"type": "regression"}

    @property
    def positions(self) -> dict[str, Any] | None:
        """Which positions on an array it knows; None where it takes none."""
        return None

    @property
    def max_spots(self) -> int | None:
        """Most spots of a slide; None where each is predicted by itself."""
        return None

    def resized(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return replace(self, **changes)  # type: ignore[type-var] # those below are dataclasses

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)  # type: ignore[call-overload, no-any-return] # those below are dataclasses

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            If a field is unknown, or a value cannot be.
        """
        unknown = sorted(set(raw) - {f.name for f in fields(cls)})  # type: ignore[arg-type]
        if unknown:
            raise ValueError(f"unknown field of the architecture: {', '.join(unknown)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        if isinstance(values.get("normalisation"), Mapping):
            values["normalisation"] = Normalisation(**dict(values["normalisation"]))
        return cls(**values)


@dataclass(frozen=True)
class OneView(Architecture):
    """What networks of one view have in common.

    Parameters
    ----------
    n_genes : int
        Outputs G.
    image_px : int
        Side of the view.
    normalisation : Normalisation

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    n_genes: int = 250
    image_px: int = 224
    normalisation: Normalisation = IMAGENET

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if f.type in ("int", "tuple[int, ...]") and not all(isinstance(n, int) and n > 0 for n in numbers):
                raise ValueError(f"{f.name} must be of positive integers, not {value!r}")

    @property
    def views(self) -> ViewGeometry:
        """The one view."""
        return ViewGeometry(self.image_px, (1,))
