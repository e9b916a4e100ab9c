"""Does a release fit this machine? Facts are collected, then decided on; the server refuses in the same words."""

from .examine import check_start, examine
from .fastest import AUTO, fastest_profile
from .findings import Finding, Level, errors

__all__ = ["AUTO", "Finding", "Level", "check_start", "errors", "examine", "fastest_profile"]
