"""The contract: geometry, centres, parameters."""

import numpy as np
import pytest
from m2ost_contract import EngineInfo, RowStatus, ViewGeometry, as_centers


def test_windows_of_the_paper():
    geometry = ViewGeometry()
    assert geometry.windows((1000, 2001)) == [(888, 1889, 224), (776, 1777, 448), (552, 1553, 896)]
    assert geometry.names == ("VIEW0", "VIEW1", "VIEW2")


@pytest.mark.parametrize("arguments", [(0,), (-2,), (223,), (224, ()), (224, (2, 4)), (224, (1, 3))])
def test_impossible_geometries(arguments):
    with pytest.raises(ValueError, match="view"):
        ViewGeometry(*arguments)


def test_centres_are_floored():
    assert as_centers([[1.9, -0.1], [3, 4]]).tolist() == [[1, -1], [3, 4]]
    assert as_centers([]).shape == (0, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e9])
def test_centres_that_are_no_positions_name_the_spot(bad):
    with pytest.raises(ValueError, match="spot 1: centre"):
        as_centers([[1, 2], [bad, 4]])
    with pytest.raises(ValueError, match="shape"):
        as_centers(np.zeros((3, 3)))


def test_engine_info_survives_the_config_parameters():
    info = EngineInfo(
        genes=("A B", "µ"),
        views=ViewGeometry(256, (1, 2)),
        mpp=0.5,
        target="t",
        trained=False,
        precision="fp32",
        checkpoint_sha256="a",
        onnx_sha256="b",
        release_sha256="c",
    )
    parameters = info.to_parameters()
    assert all(isinstance(v, str) for v in parameters.values())
    assert EngineInfo.from_parameters(parameters) == info
    del parameters["views"]
    with pytest.raises(ValueError, match="no parameter views"):
        EngineInfo.from_parameters(parameters)


def test_every_status_has_a_reason():
    assert all(status.reason for status in RowStatus)
