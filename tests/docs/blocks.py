"""Blocks of shell commands in the documentation, and how each is tested."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
GIVEN = ("my-checkpoint", "my-release", "her2st")
_FENCE = re.compile(r"^(?:<!-- (?P<how>.*?) -->\n)?```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"run: (?P<speed>fast|slow)(?:, with (?P<given>[\w-]+))?(?:, may exit (?P<status>\d))?")
_SHOWN = re.compile(r"shown: \S.{8,}")


@dataclass(frozen=True)
class Block:
    """Commands of a page: run ``fast``, ``slow``, or only shown, for a reason that the page gives."""

    page: Path
    line: int
    text: str
    speed: str | None
    given: str | None = None
    status: int = 0

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order; one that does not say how it is tested is an error."""
    source, blocks = page.read_text(encoding="utf-8"), []
    for found in _FENCE.finditer(source):
        line, how = source.count("\n", 0, found.start("text")), found["how"] or ""
        if run := _RUN.fullmatch(how):
            status = int(run["status"] or 0)
            blocks.append(Block(page, line, found["text"], run["speed"], run["given"], status))
        else:
            assert _SHOWN.fullmatch(how), f"{page.name}:{line}: a block of commands without how it is tested: {how!r}"
            blocks.append(Block(page, line, found["text"], None))
    assert len(blocks) == source.count("\n```sh\n"), f"{page.name}: a block that is not understood"
    return blocks


def pages(speed: str) -> list[list[Block]]:
    """Of each page the blocks that are run at that speed, where it has some."""
    return [found for page in PAGES if (found := [block for block in read_blocks(page) if block.speed == speed])]
