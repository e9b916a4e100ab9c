"""What was found, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is: an error decides that the release cannot be served here as asked."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    level : Level
    subject : str
        What was looked at, in a word or two.
    message : str
        What was found.
    remedy : str
        The command, or the option, that mends it; empty where all is well.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        mend = f" → {self.remedy}" if self.remedy else ""
        return f"{self.level:<8} {self.subject}: {self.message}{mend}"


def ok(subject: str, message: str) -> Finding:
    """A finding that needs nothing done."""
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str, remedy: str) -> Finding:
    """A finding that does not keep the release from being served."""
    return Finding(Level.WARNING, subject, message, remedy)


def error(subject: str, message: str, remedy: str) -> Finding:
    """A finding that does."""
    return Finding(Level.ERROR, subject, message, remedy)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep the release from being served."""
    return [finding for finding in findings if finding.level is Level.ERROR]
