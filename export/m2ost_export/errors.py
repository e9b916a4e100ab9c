"""Errors of the exporter.

::

    ExportError               a checkpoint cannot become a release; says which gate refused it
    └── EngineBuildError      an engine cannot be built, or is not what was asked for
"""

from __future__ import annotations

from m2ost_contract import M2OSTError


class ExportError(M2OSTError):
    """A checkpoint cannot become a release; the message says which gate refused it."""


class EngineBuildError(ExportError):
    """An engine cannot be built, or came out other than asked for; the message says why and what to do."""
