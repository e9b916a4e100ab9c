"""What a prediction was asked for, against what the network was trained on."""

from dataclasses import replace

import pytest
from m2ost_client.options import unlike_training


@pytest.mark.parametrize(
    ("slide_mpp", "trained_mpp", "scale", "alike"),
    [
        (0.499, 0.688, 1.0, False),
        (0.499, 0.688, 0.688 / 0.499, True),
        (0.25, 0.25, 1.0, True),
        (0.25, 0.2624, 1.0, True),
        (0.25, 0.2376, 1.0, False),
        (None, 0.688, 1.0, True),
        (0.499, None, 1.0, True),
    ],
)
def test_views_at_other_um_a_pixel_than_in_the_training_are_told(result, slide_mpp, trained_mpp, scale, alike):
    slide, engine = replace(result.slide, mpp=slide_mpp), replace(result.engine, mpp=trained_mpp)
    words = unlike_training(slide, engine, scale)
    assert (words == "") == alike
    if words:
        assert f"{slide_mpp:.4g} µm/px" in words
        assert "--view-mpp model" in words
