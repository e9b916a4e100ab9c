"""What is said of an error."""

import gc
import weakref

import pytest
from m2ost_preprocess.errors import UnreadableSlide, answered


class Request:
    """Stands for what a request holds."""


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()


def ours():
    try:
        raise OSError("disk")
    except OSError as error:
        raise UnreadableSlide("a.svs", "its reader crashed") from error


def anothers():
    raise KeyError("level")


@pytest.mark.parametrize(
    ("failing", "words"), [(ours, "a.svs: its reader crashed"), (anothers, "a.svs: unexpected KeyError: 'level'")]
)
def test_an_answered_error_keeps_nothing_of_its_request_alive(without_collector, failing, words):
    seen = []

    def serve():
        request, errors = Request(), {}
        seen.append(weakref.ref(request))
        try:
            failing()
        except Exception as error:
            errors["a.svs"] = answered("a.svs", error)
        assert isinstance(errors["a.svs"], UnreadableSlide)
        return str(errors["a.svs"])

    assert serve() == words
    assert seen[0]() is None
