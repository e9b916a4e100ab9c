"""Networks by hand, and a piece of a real slide."""

import numpy as np
import pytest
from m2ost_preprocess.readers import open_slide

from ..slides import Colours


@pytest.fixture
def colours():
    return Colours()


@pytest.fixture(scope="session")
def tissue_pixels(svs):
    """Real tissue and its border, 1,000 × 1,300 px."""
    return np.array(open_slide(svs).read(200, 700, 1000, 1300))
