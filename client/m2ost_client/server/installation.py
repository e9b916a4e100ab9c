"""Find a tritonserver: one on PATH, or the one inside a server environment with the ``nvidia-pytriton`` wheel."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from m2ost_contract import install_command, requirement

from ..errors import ServerStartError

ENV_SERVER = "M2OST_SERVER_ENV"
"""Environment variable that names the server environment; else ``.triton`` beside the client's or in the cwd."""

MIN_GLIBC = (2, 35)
PYTRITON = "nvidia-pytriton==0.7.0"

_DEFAULT_BACKENDS = Path("/opt/tritonserver/backends")

AS_A_MODEL = ("-I", "-X", "utf8=0")
"""Options, beside LC_ALL=C, that give an interpreter what Triton's Python backend gives that of a model: nothing of the
environment's ``PYTHON…`` variables, and ASCII for the names of files."""

_FACTS = """
import json, sys, sysconfig
try:
    import m2ost_serving
    error = ""
except Exception as problem:
    error = f"{type(problem).__name__}: {problem}"
print(json.dumps({
    "error": error,
    "version": "%d.%d" % sys.version_info[:2],
    "libdir": sysconfig.get_config_var("LIBDIR"),
    "library": sysconfig.get_config_var("INSTSONAME"),
    "shared": bool(sysconfig.get_config_var("Py_ENABLE_SHARED")),
    "purelib": sysconfig.get_path("purelib"),
}))
"""


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started.

    Parameters
    ----------
    executable : Path
        The program.
    environment : dict
        Variables it needs on top of the caller's.
    backend_files : tuple of Path
        Files of the Python backend to gather in one folder; empty where the program finds its own backends.
    """

    executable: Path
    environment: dict[str, str] = field(default_factory=dict)
    backend_files: tuple[Path, ...] = ()

    def interpreter(self) -> Path | None:
        """The Python that the Python backend runs its models in: the first ``python3`` on the server's PATH."""
        found = shutil.which("python3", path=self.environment.get("PATH"))
        return Path(found) if found else None

    def backends(self) -> tuple[str, ...]:
        """Names of the backends at hand."""
        if self.backend_files:
            return ("python",)
        folders = (self.executable.resolve().parent.parent / "backends", _DEFAULT_BACKENDS)
        return tuple(sorted({entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}))

    def backend_directory(self, runtime: Path) -> Path | None:
        """Lay out the backends below ``runtime``, or None where the program's own are used."""
        if not self.backend_files:
            return None
        folder = runtime / "backends" / "python"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.backend_files:
            link = folder / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        return folder.parent


def find_installation() -> Installation:
    """The tritonserver to use.

    A server environment named by ``M2OST_SERVER_ENV`` comes first, then a ``tritonserver`` on PATH (as in NGC's
    images), then a ``.triton`` environment beside the client's environment, or in the working folder if nobody but the
    caller can write to it: its Python is run.

    Raises
    ------
    ServerStartError
        If there is none, or it cannot run here; says what to install.
    """
    explicit = os.environ.get(ENV_SERVER)
    if explicit:
        return from_environment(Path(explicit))
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path))
    for folder in _candidates():
        if (folder / "bin" / "python").exists():
            return from_environment(folder)
    raise ServerStartError(
        "no tritonserver: none on PATH, no .triton environment beside this one, none here that only you can write to. "
        f"{how_to_create()}; {ENV_SERVER} names one that lies elsewhere, and --server ADDRESS asks a server elsewhere"
    )


def how_to_create() -> str:
    """The commands that make an environment for the embedded server."""
    pip = ".triton/bin/python -m pip install"
    return (
        "in a checkout run `make .triton`; elsewhere "
        f"`python3.11 -m venv .triton && {pip} {requirement('server')} && {pip} --no-deps {PYTRITON}`"
    )


def _candidates() -> Iterator[Path]:
    yield Path(sys.prefix).parent / ".triton"
    if _is_private(here := Path.cwd() / ".triton"):
        yield here


def _is_private(folder: Path) -> bool:
    """Whether a folder, and a link to it, belongs to the caller and no one else can write to it."""
    try:
        link, target = folder.lstat(), folder.stat()
    except OSError:
        return False
    shared = target.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return link.st_uid == target.st_uid == os.geteuid() and not shared


def from_environment(folder: Path) -> Installation:
    """The tritonserver inside a Python environment that holds the ``nvidia-pytriton`` wheel.

    Raises
    ------
    ServerStartError
        If the environment is incomplete, its Python has no shared library, or the C library is too old.
    """
    folder = folder.resolve()
    python = folder / "bin" / "python"
    try:
        # ServerStartError messages below name the environment; a broken interpreter shows here first.
        answer = subprocess.run(
            [python, *AS_A_MODEL, "-c", _FACTS],
            capture_output=True,
            encoding="utf-8",
            check=True,
            timeout=60,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerStartError(f"{folder}: its Python does not run ({error}); create the environment anew") from error
    # A name that is not ASCII comes as its bytes.
    facts = {k: os.fsdecode(os.fsencode(v)) if isinstance(v, str) else v for k, v in json.loads(answer.stdout).items()}
    if facts.get("error"):
        raise ServerStartError(
            f"{folder}: a model's process cannot import m2ost_preprocess there ({facts['error']}): it sees no "
            "PYTHONPATH, and no checkout below a folder with letters beyond ASCII in its name; run "
            f"{python} -m {install_command('server')}"
        )
    check_glibc(platform.libc_ver()[1])
    root = Path(facts["purelib"]) / "pytriton" / "tritonserver"
    stub = root / "python_backend_stubs" / facts["version"] / "triton_python_backend_stub"
    executable = root / "bin" / "tritonserver"
    for needed in (executable, stub):
        if not needed.is_file():
            raise ServerStartError(
                f"{folder}: no {needed.name} for Python {facts['version']}; the embedded server needs Python 3.11 "
                f"or 3.12 and `{python} -m pip install --no-deps {PYTRITON}`"
            )
    libpython = Path(facts["libdir"] or "") / str(facts["library"])
    if not facts["shared"] or not libpython.is_file():
        raise ServerStartError(
            f"{folder}: its Python has no shared library ({libpython} is missing), which Triton's Python backend links "
            "against; use a Python built with --enable-shared, on Debian: apt-get install libpython3-dev"
        )
    libraries = [str(libpython.parent), str(Path(facts["purelib"]) / "nvidia_pytriton.libs")]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return Installation(
        executable,
        {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([inherited] if inherited else [])]),
            "VIRTUAL_ENV": str(folder),
        },
        (
            root / "backends" / "python" / "libtriton_python.so",
            root / "backends" / "python" / "triton_python_backend_utils.py",
            stub,
        ),
    )


def check_glibc(found: str) -> None:
    """Refuse a C library older than the tritonserver wheel was built for.

    Raises
    ------
    ServerStartError
        If ``found`` (as ``platform.libc_ver()`` gives it) is not glibc 2.35 or later.
    """
    try:
        version = tuple(int(part) for part in found.split(".")[:2])
    except ValueError:
        version = (0, 0)
    if version < MIN_GLIBC:
        raise ServerStartError(
            f"this system's C library is glibc {found or 'of unknown version'}; the embedded tritonserver needs 2.35 "
            "or later (Debian 12, Ubuntu 22.04). Use a server in a container and --server ADDRESS"
        )
