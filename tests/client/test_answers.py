"""No answer that cannot be one becomes a result: a row for forty, values that are no numbers, facts that are none."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from m2ost_client.answers import read_engine, read_expression, read_fingerprint, read_scored, read_slide_info
from m2ost_client.errors import BadAnswer

from tests.support.releases import ENGINE as SERVED

GENES = 5
ENGINE = SimpleNamespace(genes=("a", "b", "c", "d", "e"))
FACTS = {
    "size": [200, 100], "mpp": 0.5, "mpp_source": "given", "vendor": "png", "reader": "image", "reader_reason": "",
    "note": "", "fingerprint": "f" * 64, "tissue_fraction": 0.5, "pitch_px": 100.0,
}  # fmt: skip


def answer(**arrays):
    return SimpleNamespace(as_numpy=arrays.get)


def scored(**changes):
    arrays = {"EXPRESSION": np.ones((40, GENES), np.float32), "STATUS": np.zeros((40, 1), np.int32)}
    arrays["STATUS"][3], arrays["EXPRESSION"][3] = 4, np.nan
    return answer(**{**arrays, **changes})


def with_value(row, value):
    array = scored().as_numpy("EXPRESSION").copy()
    array[row, 1] = value
    return array


def test_an_answer_is_taken_as_it_is():
    expression, status = read_scored(scored(), 40, ENGINE)
    assert expression.shape == (40, GENES)
    assert np.flatnonzero(status).tolist() == [3]
    assert read_expression(answer(EXPRESSION=np.ones((2, GENES), np.float32)), 2, ENGINE).shape == (2, GENES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"EXPRESSION": np.ones((1, GENES), np.float32)}, r"EXPRESSION is float32 of 1 × 5, not float32 of 40 × 5"),
        ({"EXPRESSION": np.ones((41, GENES), np.float32)}, "not float32 of 40 × 5"),
        ({"EXPRESSION": np.ones((40, GENES + 1), np.float32)}, "not float32 of 40 × 5"),
        ({"EXPRESSION": np.ones((40, GENES))}, "EXPRESSION is float64"),
        ({"EXPRESSION": None}, "there is no EXPRESSION in it"),
        ({"STATUS": np.zeros((1, 1), np.int32)}, "STATUS is int32 of 1 × 1, not int32 of 40 × 1"),
        ({"STATUS": np.zeros((40, 1), np.float32)}, "STATUS is float32"),
        ({"EXPRESSION": with_value(7, np.nan)}, "not finite, of spots whose status is OK"),
        ({"EXPRESSION": with_value(7, np.inf)}, "not finite, of spots whose status is OK"),
        ({"EXPRESSION": with_value(3, 1.0)}, "values of spots whose status is not OK"),
    ],
)
def test_a_table_of_another_form_or_of_no_numbers_is_refused(changes, words):
    with pytest.raises(BadAnswer, match=words):
        read_scored(scored(**changes), 40, ENGINE)


def test_views_that_were_sent_must_all_have_values():
    with pytest.raises(BadAnswer, match="not finite"):
        read_expression(answer(EXPRESSION=np.full((2, GENES), np.nan, np.float32)), 2, ENGINE)


def test_bytes_that_do_not_make_what_the_answer_says_are_refused():
    def as_numpy(name):
        raise ValueError("cannot reshape array of size 3")

    with pytest.raises(BadAnswer, match="EXPRESSION cannot be read: cannot reshape"):
        read_scored(SimpleNamespace(as_numpy=as_numpy), 40, ENGINE)


def test_an_answer_for_one_row_is_a_table_of_one_row():
    expression, status = np.arange(GENES, dtype=np.float32)[None], np.zeros((1, 1), np.int32)
    found, statuses = read_scored(answer(EXPRESSION=expression, STATUS=status), 1, ENGINE)
    assert (found.shape, statuses.shape) == ((1, GENES), (1,))
    np.testing.assert_array_equal(found, expression)
    np.testing.assert_array_equal(read_expression(answer(EXPRESSION=expression), 1, ENGINE), expression)
    for wrong in (expression[0], expression[:, :1], np.repeat(expression, 2, axis=0)):
        with pytest.raises(BadAnswer, match="EXPRESSION is float32 of"):
            read_scored(answer(EXPRESSION=wrong, STATUS=status), 1, ENGINE)
        with pytest.raises(BadAnswer, match="EXPRESSION is float32 of"):
            read_expression(answer(EXPRESSION=wrong), 1, ENGINE)


@pytest.mark.parametrize("name", ["target", "precision", "checkpoint_sha256", "onnx_sha256", "release_sha256"])
def test_a_release_that_says_nothing_of_what_it_is_is_refused(name):
    assert read_engine(SERVED.to_parameters()) == SERVED
    with pytest.raises(BadAnswer, match=f"says nothing of {name};"):
        read_engine(replace(SERVED, **{name: ""}).to_parameters())
    without = {key: value for key, value in SERVED.to_parameters().items() if key != name}
    with pytest.raises(BadAnswer, match=f"has no parameter {name}:"):
        read_engine(without)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "cell"}, "level 'cell'"),
        ({"level": "slide"}, "slide_level"),
        ({"level": "slide", "slide_level": "[" * 100_000}, "config"),
        (
            {"level": "slide", "slide_level": '{"features": 9, "table": 1e9, "max_spots": 9, "positions": "array"}'},
            "1000",
        ),
    ],
)
def test_a_level_that_nobody_knows_is_refused(changes, words):
    with pytest.raises(BadAnswer, match=words):
        read_engine(SERVED.to_parameters() | changes)


def described(facts=None, **changes):
    arrays = {
        "INFO": np.array([json.dumps(FACTS if facts is None else facts).encode()], object),
        "CENTER": np.array([[3, 4], [5, 6]], np.int32),
        "SPOT_NAME": np.array([b"0x0", b"1x0"], object),
        "THUMBNAIL": np.zeros((10, 20, 3), np.uint8),
    }
    return answer(**{**arrays, **changes})


def test_a_description_is_taken_as_it_is():
    slide = read_slide_info(described())
    assert (slide.size, slide.mpp, slide.names, slide.thumbnail.shape) == ((200, 100), 0.5, ("0x0", "1x0"), (10, 20, 3))
    assert read_fingerprint(described()) == "f" * 64


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (described(INFO=np.array([b"{"], object)), "no JSON"),
        (described(INFO=np.array([b"[]"], object)), "no JSON object"),
        (described({k: v for k, v in FACTS.items() if k != "size"}), "nothing of size"),
        (described({**FACTS, "size": [0, 100]}), r"size is \[0, 100\]"),
        (described({**FACTS, "size": "big"}), "size is 'big'"),
        (described({**FACTS, "mpp": -1}), "says -1 µm/px"),
        (described({**FACTS, "mpp": float("nan")}), "says nan µm/px"),
        (described({**FACTS, "fingerprint": None}), "fingerprint is None"),
        (described({**FACTS, "note": 3}), "something other than words"),
        (described(SPOT_NAME=np.array([b"0x0"], object)), "SPOT_NAME is object of 1, not object of 2"),
        (described(SPOT_NAME=np.array([b"0x0", b"0x0"], object)), "two spots share a name"),
        (described(SPOT_NAME=np.array([b"0x0", b"\xff"], object)), "not UTF-8"),
        (described(CENTER=np.zeros((2, 3), np.int32)), "CENTER is int32 of 2 × 3"),
        (described(THUMBNAIL=np.zeros((10, 20), np.uint8)), "THUMBNAIL is uint8 of 10 × 20"),
    ],
)
def test_a_description_of_another_form_is_refused(answered, words):
    with pytest.raises(BadAnswer, match=words):
        read_slide_info(answered)
