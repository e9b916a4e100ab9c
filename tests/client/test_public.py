"""What the package offers under its own name."""

import subprocess
import sys

import m2ost_client
import pytest


@pytest.mark.parametrize("name", m2ost_client.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name):
    assert getattr(m2ost_client, name).__doc__


@pytest.mark.parametrize("modules", ["m2ost_client", "m2ost_client.predict", "m2ost_client.archive", "m2ost_cli.main"])
def test_streams_slides_and_archives_are_imported_without_what_takes_seconds(modules):
    code = f"import sys, {modules}; print(*{{'anndata', 'matplotlib', 'pandas', 'zarr'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"
