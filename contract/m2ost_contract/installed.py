"""Where this package was installed from, so that an error can say how to install what it lacks.

The package is on no index: a command that names it alone finds nothing.
"""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "m2ost-triton"
_PLACEHOLDER = "file:///PATH/TO/"


def install_command(extra: str) -> str:
    """The command that installs an extra of this package.

    Parameters
    ----------
    extra : str
        Of ``pyproject.toml``, such as ``client``.

    Returns
    -------
    str
        ``pip install …`` with :func:`requirement`.
    """
    return f"pip install {requirement(extra)}"


def requirement(extra: str) -> str:
    """What ``pip install`` takes to install an extra of this package, quoted for a shell.

    Parameters
    ----------
    extra : str
        Of ``pyproject.toml``, such as ``client``.

    Returns
    -------
    str
        ``-e '/checkout[extra]'`` of an editable install, ``'/checkout[extra]'`` of a folder, and else
        ``'m2ost-triton[extra] @ URL'`` with the wheel or repository that was installed. Where nobody recorded the
        wheel, or it is gone, the URL begins with ``file:///PATH/TO/``, for the reader to fill in.
    """
    origin = _origin()
    url = str(origin.get("url", ""))
    folder = _path(url)
    if folder is not None and "dir_info" in origin and (folder / "pyproject.toml").is_file():
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return editable + shlex.quote(f"{folder}[{extra}]")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{url.replace(' ', '%20')}@{vcs['commit_id']}"  # pip records it unquoted
    elif "archive_info" not in origin:
        url = f"{_PLACEHOLDER}{_wheel_name()}"
    elif folder is not None and not folder.is_file():
        url = f"{_PLACEHOLDER}{folder.name}"
    return shlex.quote(f"{DISTRIBUTION}[{extra}] @ {url}")


def _origin() -> dict[str, Any]:
    """What the installer recorded (PEP 610), or the checkout that this module lies in; empty where neither is."""
    try:
        recorded = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    if recorded:
        return dict(json.loads(recorded))
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return {"url": checkout.as_uri(), "dir_info": {}}
    return {}


def _path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _wheel_name() -> str:
    try:
        version = distribution(DISTRIBUTION).version
    except PackageNotFoundError:
        version = "VERSION"
    return f"{DISTRIBUTION.replace('-', '_')}-{version}-py3-none-any.whl"
