"""The command, run in this process."""

from __future__ import annotations


def error_of(*arguments) -> str:
    """What the command ends with, in words and with status 1, run in this process: one of its own takes seconds."""
    from m2ost_cli.main import app
    from m2ost_contract import M2OSTError
    from typer.testing import CliRunner

    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, (M2OSTError, OSError)), (arguments, repr(error))
    return str(error)
