"""µm/px of a slide: everything that a file says of it, which of that is taken, and what contradicts it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

MPP_PLAUSIBLE = (0.02, 20.0)
"""µm/px that a slide may have; a 72-dpi tag would say 352.8 and is ignored."""

MAX_ANISOTROPY = 0.1
"""Most that x and y may differ, as a share, for one figure to stand for both."""

WORTH_SAYING = 0.01
"""A difference that is told: between x and y, or between two sources."""

_UM_PER_UNIT = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
}
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre
_QUOTED = re.compile(r"[0-9][0-9.,eE+-]*")
_APERIO_MPP = re.compile(r"\bMPP\s*=\s*([0-9.,]+)")


@dataclass(frozen=True)
class Resolution:
    """µm per level-0 pixel, and who says so.

    Parameters
    ----------
    mpp : float
        µm/px; the mean of x and y.
    source : str
        Where the figure was read, e.g. ``aperio.MPP``; ``given`` where the caller gave it.
    """

    mpp: float
    source: str


@dataclass(frozen=True)
class Stated:
    """What one source says, by its name: µm per level-0 pixel across (x) and down (y)."""

    source: str
    x: float
    y: float

    @property
    def mpp(self) -> float:
        """The mean of x and y."""
        return (self.x + self.y) / 2

    @property
    def anisotropy(self) -> float:
        """By how much x and y differ, as a share."""
        return abs(self.x / self.y - 1)

    @property
    def problem(self) -> str | None:
        """Why it cannot be taken, in words; None where it can."""
        low, high = MPP_PLAUSIBLE
        shown = f"{self.source} says {self.x:g} × {self.y:g} µm/px"
        if not (low <= self.x <= high and low <= self.y <= high):
            return f"{shown}, which no slide has"
        if self.anisotropy > MAX_ANISOTROPY:
            return f"{shown}: its pixels are not square; resample the slide"
        return None


@dataclass(frozen=True)
class Found:
    """µm/px of a file, None where it has none that can be taken; and what contradicts it, or why nothing was taken."""

    resolution: Resolution | None = None
    notes: tuple[str, ...] = ()


def choose(stated: list[Stated]) -> Found:
    """Take the first source that can be true, the most trusted coming first, and say where others contradict it."""
    usable = [source for source in stated if source.problem is None]
    problems = tuple(source.problem for source in stated if source.problem is not None)
    if not usable:
        return Found(None, problems)
    taken, *others = usable
    notes = [
        f"{other.source} says {other.mpp:g} µm/px, {taken.source} {taken.mpp:g}: the latter was taken"
        for other in others
        if abs(other.mpp / taken.mpp - 1) > WORTH_SAYING
    ]
    if taken.anisotropy > WORTH_SAYING:
        notes.append(f"{taken.source} says {taken.x:g} × {taken.y:g} µm/px: their mean was taken")
    return Found(Resolution(taken.mpp, taken.source), tuple(notes))


def of_tiff(descriptions: Iterable[str], tags: tuple[float, float, int] | None) -> list[Stated]:
    """What a TIFF says: a scanner's header first, TIFF's own tags last.

    ``descriptions`` are those of the images that may carry a scanner's header; ``tags`` are X and Y resolution of the
    slide's image in pixels a unit, and ResolutionUnit.
    """
    found: list[Stated] = []
    for description in dict.fromkeys(descriptions):
        found += _aperio(description)
        found += _xml(description)
    # 72 dpi and the like are sorted out later, by what a slide may have.
    across, down, unit = tags or (0.0, 0.0, 0)
    per_unit = _UM_PER_TIFF_UNIT.get(unit)
    if per_unit is not None and across > 0 and down > 0:
        found.append(Stated("tiff.resolution", per_unit / across, per_unit / down))
    return found


def of_properties(properties: Mapping[str, str]) -> list[Stated]:
    """What OpenSlide says of a file."""
    x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return [Stated("openslide.mpp", x, y)] if x and y else []


def number(text: Any) -> float | None:
    """A positive number, with a point or a comma; None where it is none."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _aperio(description: str) -> Iterator[Stated]:
    match = _APERIO_MPP.search(description) if description.startswith("Aperio") else None
    mpp = number(match.group(1)) if match else None
    if mpp:
        yield Stated("aperio.MPP", mpp, mpp)


def _xml(description: str) -> Iterator[Stated]:
    """OME-XML and Philips' header; entities are not expanded, for a document type is refused."""
    if not description.lstrip("\ufeff \r\n").startswith("<") or "<!DOCTYPE" in description:
        return
    try:
        root = ElementTree.fromstring(description.lstrip("\ufeff \r\n").encode())
    except ElementTree.ParseError:
        return
    if root.get("ObjectType") == "DPUfsImport":
        yield from _philips(root)
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is not None:
        x, y = (_in_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
        if x and y:
            yield Stated("ome.PhysicalSize", x, y)


def _philips(root: ElementTree.Element) -> Iterator[Stated]:
    for image in root.iter("DataObject"):
        attributes = [child for child in image if child.tag == "Attribute"]
        if not any(a.get("Name") == "PIM_DP_IMAGE_TYPE" and (a.text or "").strip() == "WSI" for a in attributes):
            continue
        for attribute in image.iter("Attribute"):
            # The first is that of level 0: rows, then columns, in mm.
            values = [number(part) for part in _QUOTED.findall(attribute.text or "")]
            if attribute.get("Name") == "DICOM_PIXEL_SPACING" and len(values) == 2 and values[0] and values[1]:
                yield Stated("philips.DICOM_PIXEL_SPACING", values[1] * 1000, values[0] * 1000)
                return


def _in_um(text: str | None, unit: str) -> float | None:
    value, factor = number(text), _UM_PER_UNIT.get(unit.strip())
    return value * factor if value and factor else None
