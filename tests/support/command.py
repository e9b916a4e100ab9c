"""The command, run in this process."""

from __future__ import annotations

import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest


def error_of(*arguments) -> str:
    """What the command ends with, in words and with status 1, run in this process: one of its own takes seconds."""
    from m2ost_cli.main import app
    from m2ost_contract import M2OSTError
    from typer.testing import CliRunner

    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, (M2OSTError, OSError)), (arguments, repr(error))
    return str(error)


def m2ost(*arguments) -> tuple[int, str, str]:
    """Exit status, output and errors of the command, run in this process."""
    from m2ost_cli.main import main

    output, errors, status = StringIO(), StringIO(), 0
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["m2ost", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    return status, output.getvalue(), errors.getvalue()
