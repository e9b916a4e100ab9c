"""Figures and ratios of interleaved timings. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from m2ost_istar.geometry import VARIANTS
from m2ost_istar.timing import VariantTiming
from m2ost_loadtests.rounds import Rounds, spread

from .refined_map import EVERYWHERE, TISSUE
from .systems import M2OST, seconds

FAIR = 0.7
"""Least share of M2OST's achieved operations a second that iStar must reach for a comparison to be fair."""


def summarise(timed: Rounds[VariantTiming], superpixels: Mapping[str, int], spots: int) -> dict[str, Any]:
    """Figures and ratios of interleaved timings.

    Parameters
    ----------
    timed : Rounds of VariantTiming
        By system.
    superpixels : mapping of str to int
        Variant → places of iStar's dense prediction.
    spots : int
        Places of M2OST's.

    Returns
    -------
    dict
        ``systems``: seconds a slide, with and without reading it, GFLOP/s and places of each system. ``speedups``,
        ``speedups_without_reading``: for each of iStar's, its seconds over those of M2OST measured in the same
        way. ``dense``: the same where M2OST must predict at every superpixel of iStar's. ``fair``: whether iStar
        reached 0.7 of M2OST's operations a second.
    """
    systems = {name: _system(runs, superpixels, spots) for name, runs in timed.found.items()}
    whole = timed.map(lambda timing: seconds(timing, reading=True))
    networks = timed.map(lambda timing: seconds(timing, reading=False))
    speedups, without_reading, dense = {}, {}, {}
    for name, runs in timed.found.items():
        if not name.startswith("istar"):
            continue
        served = name.endswith("served")
        speedups[name] = whole.ratio(name, f"{M2OST}, served" if served else M2OST)
        if not served:
            without_reading[name] = networks.ratio(name, M2OST)
            factor = superpixels[runs[0].variant] / spots
            pairs = zip(runs, whole.found[M2OST], strict=True)
            dense[name] = spread([_dense_s(timing, superpixels) / (own_s * factor) for timing, own_s in pairs])
    rates = {name: entry["gflop_per_s"]["median"] for name, entry in systems.items() if "gflop_per_s" in entry}
    shares = {name: rate / rates[M2OST] for name, rate in rates.items() if name != M2OST}
    return {
        "systems": systems,
        "speedups": speedups,
        "speedups_without_reading": without_reading,
        "dense": dense,
        "gflop_share_of_m2ost": shares,
        "fair": all(share >= FAIR for share in shares.values()),
    }


def with_tolerances(report: Mapping[str, Any], maps: Mapping[str, Any]) -> dict[str, Any]:
    """The ratios at iStar's density where M2OST's map has a tolerance.

    Parameters
    ----------
    report : mapping
        Of :func:`m2ost_bench.istar.comparison.compare`.
    maps : mapping
        Of :func:`m2ost_bench.istar.refined_map.measure`, perhaps of another slide: how many predictions a map needs
        depends on the slide, and on how much of it is glass.

    Returns
    -------
    dict
        ``slide``, ``region`` and ``pitch_px`` of the maps; ``rows``: for each of iStar's variants and each tolerance
        the places a prediction, r per gene with the exact map, and iStar's seconds over those of such a map: its
        predictions, at M2OST's seconds a spot, and all else that it takes.
    """
    own = report["systems"][M2OST]
    a_spot_s, rows = own["seconds"]["median"] / own["places"], []
    for name, ratio in report["dense"].items():
        variant = name.removeprefix("istar ")
        cells = TISSUE if VARIANTS[variant].tissue_only else EVERYWHERE
        for tolerance, found in maps["maps"][cells].items():
            spent = 1 / found["places_per_prediction"] + found["other_s"] / found["places"] / a_spot_s
            rows.append(
                {
                    "system": name,
                    "cells": cells,
                    "tolerance_sd": float(tolerance),
                    "places_per_prediction": found["places_per_prediction"],
                    "r_per_gene": found["r_per_gene"],
                    "ratio": {figure: value / spent for figure, value in ratio.items()},
                }
            )
    return {**{key: maps[key] for key in ("slide", "region", "pitch_px")}, "rows": rows}


def _system(runs: Sequence[VariantTiming], superpixels: Mapping[str, int], spots: int) -> dict[str, Any]:
    first = runs[0]
    entry: dict[str, Any] = {
        "batch_rows": first.batch_rows,
        "places": spots
        if first.variant not in superpixels or VARIANTS[first.variant].tissue_only
        else superpixels[first.variant],
        "seconds": spread([seconds(t, reading=True) for t in runs]),
        "sampled": first.sampled,
    }
    if first.flop:
        entry["seconds_without_reading"] = spread([seconds(t, reading=False) for t in runs])
        entry["gflop_per_s"] = spread([t.gflop_per_s for t in runs])
        entry["tflop"] = first.scaled_flop / 1e12
    return entry


def _dense_s(timing: VariantTiming, superpixels: Mapping[str, int]) -> float:
    """Seconds of a variant that predicts at all of its superpixels, not only at those of spots."""
    every = superpixels[timing.variant]
    return sum(s.scaled_s * (every / s.total if s.unit == "superpixels" else 1.0) for s in timing.stages)
