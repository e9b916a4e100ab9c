"""Attacks on a served release: ``python -m tests.attack requests …``; each writes what it found as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import faults, overload, requests, slides, target


def attack_requests(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = {"seed": given.seed, "count": given.count, "first": given.first}
    return requests.attack_release(given.release, given.slide, folder, **options).facts()


def attack_overload(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    trap = target.make_trap(folder, given.slide)
    with target.served(given.release, target.own_roots(given.slide, trap)) as (server, _):
        slide = requests.ground_of(server, given.slide, trap).slide
        if given.what == "cancel":
            return overload.cancel(server, slide)
        return overload.overload(server, slide, seconds=given.seconds)


def attack_faults(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return faults.run(given.release, given.slide, folder, only=given.only)


def attack_slides(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if given.folder is None:
        slides.make_slides(folder, given.slide)
    return slides.run(given.release, given.slide, given.folder or folder)


COMMANDS = {
    "requests": (attack_requests, "hostile requests"),
    "overload": (attack_overload, "more requests than can be served, and an interactive client beside an archive"),
    "cancel": (attack_overload, "requests that are cancelled under way"),
    "faults": (attack_faults, "faults under a steady load"),
    "slides": (attack_slides, "evil slides beside a good one"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="what")
    for name, (_, words) in COMMANDS.items():
        made = commands.add_parser(name, help=words, description=words)
        made.add_argument("--release", type=lambda path: Path(path).resolve(), required=True)
        made.add_argument("--slide", type=lambda path: Path(path).resolve(), required=True)
        made.add_argument("--out", type=Path, required=True, help="file for the record")
        if name == "requests":
            made.add_argument("--count", type=int, default=10_000)
            made.add_argument("--seed", type=int, default=1)
            made.add_argument("--first", type=int, default=0, help="number of the first request")
        if name == "overload":
            made.add_argument("--seconds", type=float, default=20.0, help="length of each load")
        if name == "faults":
            made.add_argument("--only", default="", help="those faults whose names hold this")
        if name == "slides":
            made.add_argument("--folder", type=Path, help="the evil files; by default a few are made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        record = COMMANDS[given.what][0](given, Path(folder))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    sys.exit("\n".join(record["faults"]) or 0)


if __name__ == "__main__":
    main()
