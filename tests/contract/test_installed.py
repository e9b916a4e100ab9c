"""The command that an error gives for what is not installed, as it is after real installs, and that it runs."""

import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from m2ost_contract import install_command

CHECKOUT = Path(__file__).parents[2]
ASK = "from m2ost_contract import requirement; print(requirement('client'))"
INSTALL = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", "--quiet")
BESIDE = ("numpy", "numpy.libs", "setuptools", "setuptools-*.dist-info", "_distutils_hack")
"""What the contract imports, and what builds a folder, neither of which a machine without network can install."""

pytestmark = pytest.mark.usefixtures("heavy")


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def install(python, *what):
    run(sys.executable, "-m", "pip", "--python", python, *INSTALL, *what)


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment that has nothing of this project."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    beside, here = tmp_path / "beside", Path(sysconfig.get_path("purelib"))
    beside.mkdir()
    for folder in (found for name in BESIDE for found in here.glob(name)):
        (beside / folder.name).symlink_to(folder)
    (packages / "beside.pth").write_text(f"{beside}\n")
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The project's files in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("source") / "a checkout"
    for name in run("git", "-C", CHECKOUT, "ls-files", "-coz", "--exclude-standard").split("\0"):
        if name and (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, source)
    (wheel,) = folder.iterdir()
    return wheel


def check_runs(python, told):
    """What is told installs the same again."""
    install(python, *shlex.split(told))
    assert run(python, "-c", ASK) == told


def test_an_editable_install_names_its_checkout(python, source):
    install(python, "-e", source)
    told = run(python, "-c", ASK)
    assert told == f"-e '{source}[client]'"
    check_runs(python, told)


def test_an_install_of_a_folder_names_the_folder(python, source):
    install(python, source)
    told = run(python, "-c", ASK)
    assert told == f"'{source}[client]'"
    check_runs(python, told)


def test_a_wheel_is_named_while_it_is_there(python, wheel, tmp_path):
    mine = Path(shutil.copy(wheel, tmp_path))
    install(python, mine)
    told = run(python, "-c", ASK)
    assert told == f"'m2ost-triton[client] @ {mine.as_uri()}'"
    check_runs(python, told)
    mine.unlink()
    assert run(python, "-c", ASK) == f"'m2ost-triton[client] @ file:///PATH/TO/{mine.name}'"


def test_a_wheel_that_nobody_recorded_is_left_to_the_reader(python, wheel):
    install(python, "--find-links", wheel.parent, "m2ost-triton")
    assert run(python, "-c", ASK) == f"'m2ost-triton[client] @ file:///PATH/TO/{wheel.name}'"


def test_a_repository_is_named_with_its_commit(python, source):
    git = ("git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b.c")
    run(*git, "init", "--quiet")
    run(*git, "add", ".")
    run(*git, "commit", "--quiet", "--message", "all")
    url = f"git+file://localhost{quote(str(source))}"  # a requirement takes none without a host
    install(python, url)
    told = run(python, "-c", ASK)
    assert told == f"'m2ost-triton[client] @ {url}@{run(*git, 'rev-parse', 'HEAD')}'"
    check_runs(python, told)


def test_files_that_nothing_installed_name_the_folder_they_lie_in(python, source, wheel, tmp_path):
    asked = f"import sys; sys.path.insert(0, sys.argv[1]); {ASK}"
    assert run(python, "-c", asked, source / "contract") == f"'{source}[client]'"
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "files", [n for n in files.namelist() if ".dist-info" not in n])
    bare = run(python, "-c", asked, tmp_path / "files")
    assert bare == "'m2ost-triton[client] @ file:///PATH/TO/m2ost_triton-VERSION-py3-none-any.whl'"


def test_the_command_is_pips():
    assert install_command("client").startswith("pip install ")
