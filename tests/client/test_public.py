"""What the package offers under its own name."""

import subprocess
import sys

import m2ost_client
import pytest


@pytest.mark.parametrize("name", m2ost_client.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name):
    assert getattr(m2ost_client, name).__doc__


def test_a_stream_is_imported_without_what_takes_seconds():
    code = "import sys, m2ost_client; print(*{'anndata', 'matplotlib', 'zarr'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"
