"""Images as they are deployed, on a base of Debian's that stands in for NGC's."""

from __future__ import annotations

import pytest

from tests.e2e.releases import NARROW, make_release
from tests.support.containers import CLIENT, SERVER, build, need_containers


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"), NARROW)


@pytest.fixture(scope="session")
def server_image() -> str:
    need_containers()
    return build("server", SERVER)


@pytest.fixture(scope="session")
def client_image() -> str:
    need_containers()
    return build("client", CLIENT)
