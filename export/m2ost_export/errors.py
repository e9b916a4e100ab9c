"""Errors of the exporter.

::

    ExportError         a checkpoint cannot become a release; says which gate refused it
    └── EngineError     an engine cannot be built, or is not what was asked for
"""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint cannot become a release; the message says which gate refused it."""


class EngineError(ExportError):
    """An engine cannot be built, or came out other than asked for; the message says why and what to do."""
