"""Print what has changed in a version, and refuse a tag that is of another one.

Usage: release_notes.py TAG
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def project_version() -> str:
    """The version that the package states."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def notes(tag: str, version: str, changes: str) -> str:
    """The section of ``changes``, a changelog, of the version that ``tag`` names.

    Raises
    ------
    ValueError
        If the tag is of another version than the package, or the changelog has no section of it.
    """
    if tag != f"v{version}":
        raise ValueError(f"tag {tag}: the package is of version {version}; change pyproject.toml, or tag v{version}")
    found = re.search(rf"^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ValueError(f"CHANGELOG.md: nothing under `## {version}`; name the section `Unreleased` so, with the date")
    return found[1].strip()


def main(tag: str) -> None:
    """Print the notes, or end with the reason why there are none."""
    try:
        sys.stdout.write(
            notes(tag, project_version(), (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")) + "\n"
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
