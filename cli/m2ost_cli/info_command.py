"""The command ``info``: what a checkpoint, a release or a result is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from m2ost_contract import MODEL_ENGINE, Manifest, ViewGeometry, sha256_file

from .common import UserError, needs

if TYPE_CHECKING:
    from m2ost.architecture import Architecture
    from m2ost.complexity import Complexity

CARD = "model.json"
_SHOWN_GENES = 5


def info(
    subject: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint folder, release folder, or .h5ad of a result. By default the paper's model."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
) -> None:
    """Show what a checkpoint, a release or a result is: genes, target, network, views, engines, sha256.

    Of a checkpoint, parameters and floating-point operations stand beside published figures.
    """
    facts, architecture = _facts(subject) if subject is not None else _papers_facts()
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    if subject is not None:
        _print_facts(subject, facts)
    if architecture is not None:
        _print_complexity(architecture)


def _facts(subject: Path) -> tuple[dict[str, Any], Architecture | None]:
    """What kind of thing it is, and what it says of itself; of a checkpoint its architecture too."""
    if (subject / Manifest.FILENAME).is_file():
        return _release_facts(subject), None
    if (subject / CARD).is_file():
        return _checkpoint_facts(subject)
    if subject.suffix == ".h5ad" and subject.is_file():
        return _result_facts(subject), None
    what = "neither a checkpoint, a release nor a result" if subject.exists() else "no such file or folder"
    raise UserError(
        f"{subject}: {what}; info reads a checkpoint folder (with {CARD}), a release folder (with {Manifest.FILENAME}) "
        "and an .h5ad of `m2ost predict`"
    )


def _papers_facts() -> tuple[dict[str, Any], Architecture]:
    with needs("export"):
        from m2ost.config import M2OSTConfig
    return {"kind": "the paper's model", **_cost(M2OSTConfig())}, M2OSTConfig()


def _cost(architecture: Architecture) -> dict[str, Any]:
    with needs("export"):
        from m2ost.complexity import count
    cost = count(architecture)
    return {"parameters": cost.parameters, "flop_per_spot": cost.flop}


def _release_facts(folder: Path) -> dict[str, Any]:
    manifest = Manifest.read(folder)
    engine = manifest.engine
    profiles = sorted(path.stem for path in (folder / "m2ost" / "configs").glob("*.pbtxt"))
    return {
        "kind": "release",
        "name": manifest.served_name,
        "trained": engine.trained,
        **_panel(engine.genes),
        "target": engine.target,
        "architecture": {"name": MODEL_ENGINE, **manifest.architecture},
        "precision": engine.precision,
        "views": _views(engine.views, engine.mpp),
        "engines": [
            {key: value for key, value in asdict(plan).items() if key in ("toolkit", "version", "compute_capability")}
            for plan in manifest.engines
        ],
        "profiles": ["cpu", *profiles],
        "sha256": {
            "manifest": sha256_file(folder / Manifest.FILENAME),
            "release": engine.release_sha256,
            "graph": engine.onnx_sha256,
            "weights": engine.checkpoint_sha256,
        },
    }


def _checkpoint_facts(folder: Path) -> tuple[dict[str, Any], Architecture]:
    with needs("export"):
        from m2ost.checkpoint import load
        from m2ost.systems.registry import system_of, to_dict
    card = load(folder)[1]
    facts = {
        "kind": "checkpoint",
        "trained": card.trained,
        **_panel(card.genes),
        "target": card.target,
        "architecture": {"name": system_of(card.architecture).name, **to_dict(card.architecture)},
        **_cost(card.architecture),
        "views": _views(card.architecture.views, card.mpp),
        "sha256": {"card": sha256_file(folder / CARD), "weights": card.sha256},
    }
    return facts, card.architecture


def _result_facts(path: Path) -> dict[str, Any]:
    with needs("client"):
        from m2ost_client.reports.stored import read_facts, read_genes
    metadata, _ = read_facts(path)
    views, slide = metadata["views"], metadata["slide_facts"]
    return {
        "kind": "result",
        "slide": metadata["slide"],
        "slide_mpp": slide.get("mpp"),
        "slide_mpp_source": slide.get("mpp_source"),
        "spots": metadata["spots"],
        "trained": metadata["trained"],
        **_panel(read_genes(path)),
        "target": metadata["target"],
        "precision": metadata["precision"],
        "views": _views(ViewGeometry.from_dict(views), views.get("mpp")),
        "warning": views.get("warning", ""),
        "engines": [{"runs_on": metadata.get("engine", "")}],
        "sha256": {"release": metadata["release_sha256"], "weights": metadata["checkpoint_sha256"]},
    }


def _panel(genes: tuple[str, ...]) -> dict[str, Any]:
    return {"genes": {"count": len(genes), "first": list(genes[:_SHOWN_GENES])}}


def _views(views: ViewGeometry, mpp: float | None) -> list[dict[str, Any]]:
    """Side in pixels, and µm/px where it is known, of each view from fine to coarse."""
    return [
        {"name": name, "size_px": views.size_px, "mpp": None if mpp is None else mpp * factor}
        for name, factor in zip(views.names, views.factors, strict=True)
    ]


def _print_facts(subject: Path, facts: dict[str, Any]) -> None:
    genes, trained = facts["genes"], "" if facts["trained"] else ", UNTRAINED"
    print(f"{subject}: a {facts['kind']}{trained}")
    rows = {}
    if "slide" in facts:
        mpp = facts["slide_mpp"]
        rows["slide"] = f"{facts['slide']}, " + (
            f"{mpp:g} µm/px ({facts['slide_mpp_source']})" if mpp else "µm/px unknown"
        )
        rows["spots"] = f"{facts['spots']['count']:,} ({facts['spots']['source']})"
    if "name" in facts:
        rows["served as"] = facts["name"]
    more = " …" if genes["count"] > len(genes["first"]) else ""
    rows["genes"] = f"{genes['count']:,}: {', '.join(genes['first'])}{more}"
    rows["target"] = facts["target"]
    if "architecture" in facts:
        sizes = {name: str(value) for name, value in facts["architecture"].items() if isinstance(value, (int, str))}
        title = sizes.pop("name")
        rows["architecture"] = ", ".join([title, *(f"{name} {value}" for name, value in sizes.items())])
    if "precision" in facts:
        rows["precision"] = facts["precision"]
    rows["views"] = ", ".join(
        f"{view['name']} {view['size_px']} px at " + (f"{view['mpp']:g} µm/px" if view["mpp"] else "unknown µm/px")
        for view in facts["views"]
    )
    if warning := facts.get("warning"):
        rows["warning"] = warning
    if engines := facts.get("engines"):
        rows["engines"] = "; ".join(" ".join(filter(None, engine.values())) for engine in engines)
    if "profiles" in facts:
        rows["profiles"] = ", ".join(facts["profiles"])
    rows |= {f"sha256 of {what}": digest for what, digest in facts["sha256"].items() if digest}
    for name, value in rows.items():
        print(f"  {name:20}{value}")


def _print_complexity(config: Architecture) -> None:
    """Parameters and floating-point operations beside published figures."""
    with needs("export"):
        from m2ost.complexity import PAPER, count, joint_attention
        from m2ost.config import M2OSTConfig
        from m2ost.systems.registry import SYSTEMS
    print(f"{'':36}{'parameters':>12}{'GFLOP a spot':>14}")
    if not isinstance(config, M2OSTConfig) or config.without:
        for row in (count(config), count(M2OSTConfig())):
            print(_row(row))
        return
    ours, joint = count(config), joint_attention(config)
    others = [count(system.config()) for system in SYSTEMS.values() if system.config is not M2OSTConfig]
    for row in (ours, joint, PAPER, *others):
        print(_row(row))
    more = 100 * (ours.flop / joint.flop - 1)
    print(
        f"\nDecoupling intra- from cross-level mixing costs {more:+.0f} % against joint attention: both look at the\n"
        "same pairs of tokens, so it saves no attention; it projects every token twice, with weights for each level."
    )


def _row(row: Complexity) -> str:
    parameters = f"{row.parameters:,}" if row.parameters else "–"
    return f"{row.name:36}{parameters:>12}{row.flop / 1e9:>14.3f}  {row.note}"
