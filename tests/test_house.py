"""What `lint-imports` cannot say of imports, and where slides are opened and requests are made."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import REPOSITORY

FOLDERS = (
    "contract", "preprocess", "serving", "model", "export", "client", "istar", "model_repository", "loadtests",
    "domains", "benchmarks", "cli",
)  # fmt: skip
"""Folders that hold code which is installed."""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


OPENING = ("cucim", "cucim_first", "image", "openslide", "select")
"""Modules of ``m2ost_preprocess.readers`` that open slides."""

COMPETITORS = {"benchmarks/m2ost_bench/tiler/ways.py": {"openslide", "cucim"}}
"""Files that read slides with other libraries alone, to time these: file → libraries."""


def openings_of(tree: ast.AST) -> set[str]:
    """What a module uses that opens slides in its own process."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            used |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(f".{node.attr}")
    ours = {
        name for name in used if name.endswith(".open_slide") or any(f"readers.{m}." in f"{name}." for m in OPENING)
    }
    return ours | {name.split(".")[0] for name in used} & {"openslide", "cucim"}


def test_nobody_but_the_decoders_process_opens_a_slide():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    own = tuple(f"preprocess/m2ost_preprocess/{part}/" for part in ("readers", "decoder"))
    files = [name for name in tracked.stdout.splitlines() if not name.startswith((*own, "tests/"))]
    assert len(files) > 150
    found = {name: openings_of(ast.parse((REPOSITORY / name).read_text())) for name in files}
    assert {name: uses for name, uses in found.items() if uses} == COMPETITORS


@pytest.mark.parametrize(
    ("line", "opens"),
    [
        ("from m2ost_preprocess.readers import SlideReader, open_slide", True),
        ("from ..readers import open_slide as look", True),
        ("from m2ost_preprocess.readers.select import primary_file", True),
        ("from ..readers.image import ImageReader", True),
        ("from m2ost_preprocess.readers import openslide", True),
        ("from .readers import select", True),
        ("import m2ost_preprocess.readers.cucim as fast", True),
        ("import openslide", True),
        ("from openslide import OpenSlide", True),
        ("from cucim.clara import CuImage", True),
        ("import m2ost_preprocess.readers; m2ost_preprocess.readers.open_slide(path)", True),
        ("from m2ost_preprocess.readers import Resolution, SlideReader, primary_file", False),
        ("from m2ost_preprocess.readers.base import Pixels", False),
        ("from ..readers.resolution import MPP_PLAUSIBLE", False),
        ("from m2ost_preprocess.decoder.slide import decoded_slide", False),
        ("from PIL import Image", False),
    ],
)
def test_a_line_that_opens_slides_is_known(line, opens):
    assert bool(openings_of(ast.parse(line))) == opens


def test_served_models_import_no_package_that_a_server_lacks():
    files = sorted((REPOSITORY / "model_repository").rglob("*.py"))
    assert files
    for path in files:
        ours = {name for name in imports_of(path) if name.startswith("m2ost")}
        assert ours <= {"m2ost_contract", "m2ost_preprocess", "m2ost_serving"}, path
        assert "torch" not in imports_of(path), path


@pytest.mark.parametrize(
    "modules",
    [
        "m2ost_client, m2ost_client.predict, m2ost_client.dense, m2ost_client.maps, m2ost_client.reports",
        "m2ost_client.archive",
        "m2ost_serving.triton, m2ost_serving.tiler, m2ost_preprocess.decoder.worker",
        "m2ost_istar.serving, m2ost_istar.timing",
        "m2ost_cli.main",
        "m2ost_loadtests.gate.measure, m2ost_loadtests.load.listeners",
        "m2ost_export.engine_release",
    ],
)
def test_a_client_a_server_and_a_builder_of_engines_need_no_torch(modules):
    # A None in sys.modules makes every import of that name fail.
    script = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_contract_needs_the_standard_library_and_numpy_only():
    used = set().union(*map(imports_of, (REPOSITORY / "contract").rglob("*.py")))
    assert used <= {*sys.stdlib_module_names, "numpy"}


def calls_of(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_requests_go_the_way_that_one_module_says(folder):
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    for path in files:
        if path.name == "network.py":
            continue
        assert "urllib.request" not in path.read_text(), f"{path}: m2ost_preprocess.network.read_url asks no proxy here"
        for call in calls_of(path):
            name = ast.unparse(call.func).rpartition(".")[2]
            if name in ("InferenceServerClient", "insecure_channel", "secure_channel"):
                assert "channel_options(" in ast.unparse(call), f"{path}:{call.lineno}"


def test_a_package_with_a_library_that_reports_to_its_maker_imports_the_one_that_keeps_it_from_that():
    packages = {path.parent for path in REPOSITORY.glob("*/m2ost*/__init__.py") if path.parents[1].name in FOLDERS}
    using = {p for p in packages if any("onnxruntime" in imports_of(path) for path in p.rglob("*.py"))}
    assert using
    for package in using:
        assert "m2ost_contract" in imports_of(package / "__init__.py"), package
