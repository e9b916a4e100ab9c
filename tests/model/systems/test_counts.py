"""Parameters and operations of every system, against counts made of the public networks."""

import pytest
import torch
from m2ost.complexity import SLIDE_SPOTS, count
from m2ost.systems.registry import SYSTEMS, build, find

COUNTS = [
    ("stnet", {}, 7_210_106, 5.667),
    ("resnet50", {}, 24_020_282, 8.175),
    ("deepspace", {}, 135_284_794, 30.934),
    ("vit", "b16", 85_990_906, 35.127),
    ("vit", "s16", 21_761_914, 9.197),
    ("crossvit", "tiny", 6_797_300, 3.125),
    ("crossvit", "9", 8_263_796, 3.681),
    ("crossvit", "small", 26_422_772, 11.230),
    ("crossvit", "15", 27_094_964, 11.580),
    ("crossvit", "18", 42_765_908, 18.061),
    ("crossvit", "base", 104_159_732, 42.381),
    ("histogene", {}, 72_512_762, 0.1447 + 1.64e-5 * SLIDE_SPOTS),
    ("histogene", "8", 106_099_962, None),
    ("histogene", {"n_genes": 785}, 73_061_137, None),
    ("histogene", {"n_genes": 1000}, 73_281_512, None),
    ("histogene", {"n_genes": 785, "depth": 8}, 106_648_337, None),
    ("histogene", {"image_px": 224}, 188_118_266, None),
    ("hist2st", {}, 71_776_958, None),
    ("hist2st", {"training_heads": True}, 73_596_333, None),
    ("hist2st", {"training_heads": True, "n_genes": 785}, 75_789_833, None),
    ("hist2st", {"training_heads": True, "n_genes": 171}, 73_272_433, None),
    ("hist2st", {"training_heads": True, "image_px": 224}, 759_917_997, None),
]


@pytest.mark.parametrize(("name", "sizes", "parameters", "gflop"), COUNTS)
def test_parameters_and_operations_are_those_of_the_public_network(name, sizes, parameters, gflop):
    system = find(name)
    found = count(system.config(**(system.variants[sizes] if isinstance(sizes, str) else sizes)))
    assert found.parameters == parameters
    if gflop is not None:
        assert found.flop / 1e9 == pytest.approx(gflop, abs=6e-4)


def test_every_system_is_counted():
    assert {name for name, *_ in COUNTS} | {"bleep", "m2ost"} == set(SYSTEMS)


def test_a_slide_of_378_spots_costs_histogene_57_gflop():
    assert count(find("histogene").config()).flop * 378 / 1e9 == pytest.approx(57.03, abs=0.01)


@pytest.mark.parametrize("spots", [50, 378])
def test_hist2st_by_hand(spots):
    dim, grid = 1024, 16 * 16
    convolutions = 2 * grid * (3 * 49 * 32 + 2 * (2 * 25 * 32 + 32 * 32) + 32 * 4)
    transformer = 8 * (2 * 6 * dim * dim + 2 * 2 * spots * dim)
    graph = 4 * 2 * dim * dim
    lstm = 4 * 2 * 2 * 4 * (dim + dim) * dim
    head = 2 * dim * 250
    assert lstm == pytest.approx(0.134e9, rel=2e-3)
    assert count(find("hist2st").config(), spots=spots).flop == convolutions + transformer + graph + lstm + head


def test_bleep_needs_its_image_branch_and_its_bank_alone_to_predict():
    config = find("bleep").config(bank_rows=1000)
    with torch.device("meta"):
        network = build(config)

    def size(part):
        return sum(p.numel() for p in network.get_submodule(part).parameters())

    assert size("image_encoder") == 23_508_032
    assert size("image_projection") == 590_848
    assert size("image_encoder") + size("image_projection") == 24_098_880
    assert size("spot_projection") == 130_560
    assert size("") == 24_229_440
    projection = 2 * (2048 * 256 + 256 * 256)
    trunk = count(find("resnet50").config()).flop - 2 * 2048 * 250
    assert count(config).flop == trunk + projection + 2 * 256 * 1000


def test_stnets_running_means_are_densenets():
    with torch.device("meta"):
        network = build(find("stnet").config())
    assert sum(b.numel() for b in network.state_dict().values()) - 7_210_106 == 83_769
