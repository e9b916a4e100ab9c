"""Does a release fit this machine? Facts are collected, then decided on; the server refuses in the same words."""

from .examine import check_start, examine
from .findings import Finding, Level, errors

__all__ = ["Finding", "Level", "check_start", "errors", "examine"]
