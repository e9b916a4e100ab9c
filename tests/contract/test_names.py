"""Names under which releases are served."""

import pytest
from m2ost_contract import ModelNames, ServedNameError, check_distinct, check_name, choose


def test_a_release_alone_keeps_the_names_of_its_templates():
    alone = ModelNames()
    for name in ("m2ost", "m2ost_slide", "m2ost_patches", "m2ost_spots", "m2ost_sequence", "row_guard", "slide_tiler"):
        assert alone.of(name) == name


def test_of_several_all_but_the_shared_models_are_renamed():
    names = ModelNames("vit", "slide_tiler_2", "vit_guard")
    renamed = ("m2ost", "m2ost_slide", "m2ost_patches", "row_guard", "slide_tiler", "slide_info")
    assert [names.of(name) for name in renamed] == [
        "vit", "vit_slide", "vit_patches", "vit_guard", "slide_tiler_2", "slide_info",
    ]  # fmt: skip
    assert ModelNames.from_dict({"engine": "vit", "tiler": "slide_tiler_2", "guard": "vit_guard"}) == names
    with pytest.raises(ValueError, match="names of models"):
        ModelNames.from_dict({"engine": "vit", "tiler": 3, "guard": "vit_guard"})


@pytest.mark.parametrize("name", ["", "Vit", "../vit", "vit b", "1vit", "v" * 42, "vit\n"])
def test_a_name_is_one_for_folders_metrics_and_models(name):
    with pytest.raises(ServedNameError, match="a release cannot be called"):
        check_name(name)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["vit", "vit"], "two releases are called vit"),
        (["vit", "vit_slide"], "vit and vit_slide clash: both would have a model vit_slide"),
        (["vit_guard", "vit"], "vit_guard and vit clash: both would have a model vit_guard"),
        (["slide_info"], "a release called slide_info would have a model slide_info"),
        (["slide_tiler"], "a release called slide_tiler would have"),
    ],
)
def test_names_that_cannot_stand_on_one_server(names, words):
    with pytest.raises(ServedNameError, match=words):
        check_distinct(names)
    check_distinct(["vit", "vit_b", "stnet"])


def test_a_client_gets_the_one_it_names_or_the_only_one():
    assert choose({"stnet": "m2ost"}, None) == choose({"stnet": "m2ost"}, "stnet") == "m2ost"
    assert choose({"m2ost": "m2ost", "vit": "vit"}, "vit") == "vit"
    with pytest.raises(ServedNameError, match="it serves m2ost, vit: say which with --model"):
        choose({"m2ost": "m2ost", "vit": "vit"}, None)
    with pytest.raises(ServedNameError, match="no model 'stnet'; there is m2ost, vit"):
        choose({"m2ost": "m2ost", "vit": "vit"}, "stnet")
