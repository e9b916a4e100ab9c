"""What the documentation says exists: commands, options, files, sections."""

import re
import shlex

import pytest
import typer
from m2ost_cli.main import app

from .blocks import GIVEN, PAGES, REPOSITORY, read_blocks

WORDS = 1000
"""Of the README, at most."""

ROOT = typer.main.get_command(app)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)?(?:#([^)\s]+))?\)")


def commands_of(text):
    """Each `m2ost …` of a page, as words: in blocks and between backticks."""
    for found in re.finditer(r"(?:^|(?<=`))m2ost (?=[a-z-])[^`|]*?(?=`|\||$|[|&>;]| #)", text, re.MULTILINE):
        yield shlex.split(found[0].replace("\\", "").replace("…", " "))[1:]


def options_of(command):
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}


def unknown(words):
    """The word of a command line that the command line does not know, or None."""
    command = ROOT
    while words and hasattr(command, "commands"):
        if words[0].startswith("-") or words[0] not in command.commands:
            break
        command, words = command.commands[words[0]], words[1:]
    known = options_of(command)
    if hasattr(command, "commands") and words and words[0] not in known:
        return words[0]
    return next((word for word in words if word.startswith("--") and word.split("=")[0] not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_names_is_there(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found = list(commands_of(text))
    assert [(words, word) for words in found if (word := unknown(words))] == []


def test_a_command_and_an_option_that_are_none_would_be_noticed():
    assert unknown(["predict", "a.svs", "--outt", "x"]) == "--outt"
    assert unknown(["bench", "gates", "x"]) == "gates"
    assert unknown(["bench", "gate", "release", "--load-s", "2"]) is None
    assert list(commands_of("helm install m2ost chart, `m2ost status DIR [--json]` or\nm2ost serve R &\n")) == [
        ["status", "DIR", "[--json]"],
        ["serve", "R"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_sections_that_are_there(page):
    for file, section in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {file}"
        if section:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert section in names, f"{page.name}: {file}#{section}"


def test_every_block_of_commands_says_how_it_is_tested():
    blocks = [block for page in PAGES for block in read_blocks(page)]
    assert {block.given for block in blocks} <= {None, *GIVEN}
    assert {"fast", "slow"} <= {block.speed for block in blocks}


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= WORDS


def test_every_picture_of_the_documentation_is_shown():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [file.name for file in (REPOSITORY / "docs" / "images").iterdir() if f"images/{file.name}" not in text] == []
