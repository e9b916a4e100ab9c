"""A clock that is set harms nothing that is served: nothing there asks what time of day it is."""

import re

import pytest

from tests.support.data import REPOSITORY

WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\b|\bdatetime\b|\b(local|gm|c)time\b|from time import")


@pytest.mark.parametrize("folder", ["contract", "preprocess", "serving", "model_repository"])
def test_what_runs_in_the_server_knows_no_time_of_day(folder):
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WALL_CLOCK.search(line)
    ]
    assert found == []
