"""A slide's result, made up."""

import numpy as np
import pytest
from m2ost_client.results import SlideResult
from m2ost_contract import RowStatus
from m2ost_preprocess.decoder import SlideInfo
from m2ost_preprocess.slides.spots import Spots

from tests.support.releases import ENGINE


@pytest.fixture
def result():
    slide = SlideInfo(
        size=(2000, 1500),
        mpp=0.5,
        mpp_source="aperio.MPP",
        vendor="aperio",
        reader="cucim",
        reader_reason="",
        note="",
        fingerprint="f",
        tissue_fraction=0.5,
        pitch_px=100.0,
        centers=np.zeros((0, 2)),
        names=(),
        thumbnail=np.full((300, 400, 3), 230, np.uint8),
    )
    centers = np.stack(np.meshgrid(np.arange(50, 1000, 100), np.arange(50, 800, 100)), -1).reshape(-1, 2).astype(float)
    expression = np.random.default_rng(0).normal(size=(len(centers), 4)).astype(np.float32)
    status = np.zeros(len(centers), np.int32)
    status[3], expression[3] = RowStatus.OUTSIDE_SLIDE, np.nan
    spots = Spots(centers, tuple(f"s{i}" for i in range(len(centers))), 100.0, "grid")
    return SlideResult("slide", slide, ENGINE, spots, expression, status)
