"""The thresholds file: what is right is read whole, what is wrong is named."""

import pytest
from m2ost_loadtests.errors import ThresholdsError
from m2ost_loadtests.gate.thresholds import SHIPPED, Limit, Thresholds, read_thresholds


def test_the_shipped_file_gives_a_reason_for_every_limit():
    shipped = read_thresholds(SHIPPED)
    limits = [limit for limit in vars(shipped).values() if isinstance(limit, Limit)]
    assert len(limits) == 6
    assert all(len(limit.because) > 40 for limit in limits)
    assert shipped.bytes_per_spot.value == 100
    assert shipped.failed_requests.value == 0


def test_what_is_left_out_is_not_asked_for(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("speedup_over_istar:\n  stock: {at_least: 100, because: the article}\n")
    assert read_thresholds(file) == Thresholds(speedup_over_istar={"stock": Limit(100, "the article")})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "serve_over_bare: {at_least: 1, because: x}",
            "unknown key 'serve_over_bare'; the nearest known is 'served_over",
        ),
        ("failures: {at_most: 1, because: x}", "unknown key 'failures'; the nearest known is"),
        ("1: {at_most: 1, because: x}", "unknown key 1"),
        ("bytes_per_spot: {at_least: 1, because: x}", "unknown key 'at_least'; the nearest known is 'at_most'"),
        ("bytes_per_spot: 100", "must be `{at_most: NUMBER, because: WHY}`, not 100"),
        (
            "bytes_per_spot: {at_most: many, because: x}",
            "bytes_per_spot: at_most must be a number, 0 or more; not 'many'",
        ),
        ("bytes_per_spot: {at_most: -1, because: x}", "not -1"),
        ("bytes_per_spot: {at_most: .nan, because: x}", "not nan"),
        ("bytes_per_spot: {at_most: true, because: x}", "not True"),
        ("bytes_per_spot: {because: x}", "not None"),
        ("bytes_per_spot: {at_most: 1}", "`because` is missing"),
        ("bytes_per_spot: {at_most: 1, because: ' '}", "`because` is missing"),
        ("speedup_over_istar: 100", "must name variants"),
        ("speedup_over_istar: {stock: 100}", "speedup_over_istar: stock: must be"),
        ("baseline_tolerance: {at_most: 25, because: x}", "a share of at most 1, not 25"),
        ("- a list", "holds no thresholds"),
        ("", "holds no thresholds"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(ThresholdsError) as error:
        read_thresholds(file)
    assert str(file) in str(error.value)
    assert words in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ThresholdsError, match="cannot be read"):
        read_thresholds(tmp_path / "absent.yaml")
