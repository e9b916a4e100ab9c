"""A load test of the deployment: ``python -m tests.load --release DIR --slide FILE --out FOLDER``.

Builds the server's image, runs it as it is deployed with TLS and a token, and has Locust ask, a master with workers.
Ends with status 1 where something that is counted does not add up. Figures fail nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from m2ost_bench.load.measure import STEPS
from m2ost_bench.load.report import to_markdown
from m2ost_loadtests.machine import write_report

from tests.load.deployment import load_image
from tests.support.containers import SERVER, build


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--release", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--slide", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for load.json and load.md")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each load")
    parser.add_argument("--rounds", type=int, default=3, help="capacity and overload in turn")
    parser.add_argument("--steps", default=STEPS, type=_numbers, help="open loads over capacity, with commas")
    given = parser.parse_args()

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    image = build("server", SERVER)
    with tempfile.TemporaryDirectory(prefix="m2ost-load-") as folder:
        options = {"seconds": given.seconds, "rounds": given.rounds, "steps": given.steps}
        report = load_image(image, given.release, given.slide, Path(folder), say, **options)
    text = to_markdown(report)
    write_report(report, given.out, "load").with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit("\n".join(report["faults"]) or 0)


if __name__ == "__main__":
    main()
