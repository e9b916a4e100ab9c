"""What a load asks for."""

import numpy as np
import pytest
from m2ost_loadtests.load.workload import ARCHIVE, INTERACTIVE, Draw, Load, SlideSpots, traffic_class, zipf_weights


def slides(n, spots=50):
    grid = np.stack(np.meshgrid(np.arange(spots) * 100, [0]), -1).reshape(-1, 2).astype(np.int32)
    return [SlideSpots(f"r/{i}", grid) for i in range(n)]


def test_popularity_is_zipf_distributed():
    np.testing.assert_allclose(zipf_weights(3, 1), np.array([6, 3, 2]) / 11)
    np.testing.assert_allclose(zipf_weights(4, 0), 0.25)
    draw = Draw(slides(3), exponent=2, seed=(1,))
    drawn = [draw.request(1).slide for _ in range(4000)]
    shares = [drawn.count(f"r/{i}") / 4000 for i in range(3)]
    np.testing.assert_allclose(shares, np.array([36, 9, 4]) / 49, atol=0.03)


def test_a_request_asks_for_neighbouring_spots_of_one_slide_and_always_for_as_many():
    draw = Draw(slides(1), exponent=1, seed=(0,))
    for _ in range(50):
        x = draw.request(8).centers[:, 0]
        assert len(x) == 8
        assert set(np.diff(x) % 5000) == {100}
    assert len(Draw(slides(1, spots=3), exponent=1, seed=(0,)).request(8).centers) == 8


def test_draws_repeat_with_the_seed_and_differ_between_users():
    def first(*seed):
        draw = Draw(slides(3), exponent=1, seed=seed)
        return [(r.slide, r.centers[0, 0]) for r in (draw.request(1) for _ in range(20))]

    assert first(0, 0, 1) == first(0, 0, 1)
    assert first(0, 0, 1) != first(0, 0, 2)
    assert first(0, 0, 1) != first(0, 1, 1)


@pytest.mark.parametrize("share", [0, 0.25, 1 / 3, 0.5, 0.9, 1])
def test_classes_of_traffic_are_dealt_out_in_proportion(share):
    classes = [traffic_class(i, share) for i in range(60)]
    assert classes.count(ARCHIVE) == round(60 * share)
    assert classes.count(INTERACTIVE) == 60 - round(60 * share)


def test_gaps_of_an_open_load():
    draw = Draw(slides(1), exponent=1, seed=(3,))
    assert Load(arrival_rate=4).gap_s(draw) == 0.25
    gaps = [Load(arrival_rate=4, poisson=True).gap_s(draw) for _ in range(4000)]
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.1)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.1)


def test_users_of_an_open_load_do_not_begin_all_at_once():
    draws = [Draw(slides(1), exponent=1, seed=(i,)) for i in range(400)]
    for poisson, spread in ((False, 0.25 / 12**0.5), (True, 0.25)):
        first = [Load(arrival_rate=4, poisson=poisson).first_s(draw) for draw in draws]
        assert min(first) >= 0
        assert np.std(first) == pytest.approx(spread, rel=0.2)
        assert poisson or max(first) < 0.25
    assert Load().first_s(draws[0]) == 0


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("spots", (0, 257)),
        ("archive_spots", (0, 257)),
        ("archive_share", (-0.1, 1.1)),
        ("zipf_exponent", (-1, float("nan"))),
        ("arrival_rate", (-1, float("inf"))),
        ("max_in_flight", (0,)),
        ("think_s", (-1,)),
        ("pitch_um", (0, float("nan"))),
        ("mpp", (0, -1)),
        ("deadline_s", (0,)),
        ("spot_diameter_um", (0,)),
    ],
)
def test_options_out_of_range_are_named(option, values):
    for value in values:
        with pytest.raises(ValueError, match="--" + option.replace("_", "-")):
            Load(**{option: value})
