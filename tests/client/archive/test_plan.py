"""What a slide of an archive is to be scored as."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from m2ost_client import InputError
from m2ost_client.archive import SlideRow
from m2ost_client.archive.plan import ENGINE_OF_BEFORE, Settings, plan_slide, result_key
from m2ost_preprocess.errors import SpotError


def plan(result, spots):
    async def describe(pitch_um, mpp):
        return result.slide

    return asyncio.run(plan_slide(SlideRow("a", "a.svs", spots=str(spots)), describe, Settings(), result.engine))


def test_spots_of_a_file_are_those_scored(result, tmp_path):
    path = tmp_path / "spots.csv"
    path.write_text("name,x,y,in_tissue\na,400.5,300,TRUE\nb,900,300,FALSE\nc,1400,1200.5,TRUE\n")
    made = plan(result, path)
    assert made.spots.names == ("a", "c")
    assert made.centers[np.argsort(made.order)].tolist() == [[400, 300], [1400, 1200]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no spot"),
        (
            [(x, y) for x in range(1, 34) for y in range(1, 36)],
            r"x, y from \(1, 1\) to \(33, 35\) .*on an array",
        ),
        ([(x, 100) for x in range(2001, 2100, 7)], "15 of 15 spots lie outside"),
    ],
)
def test_spots_that_cannot_be_the_slides_are_refused_before_it_is_scored(result, tmp_path, rows, message):
    path = tmp_path / "spots.csv"
    path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in rows))
    with pytest.raises(SpotError, match=message) as error:
        plan(result, path)
    assert str(path) in str(error.value)


def test_pixels_of_a_smaller_image_are_refused_by_the_slides_own_overview(result, tmp_path):
    pixels = result.slide.thumbnail.copy()
    pixels[100:220, 120:320] = (180, 80, 150)  # tissue: 600 to 1600, 500 to 1100 px of 2000 × 1500
    result = replace(result, slide=replace(result.slide, thumbnail=pixels))
    path = tmp_path / "spots.csv"
    rows = [(x, y) for x in range(620, 1580, 60) for y in range(520, 1080, 60)]
    path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in rows))
    assert len(plan(result, path).spots) == len(rows)
    path.write_text("x,y\n" + "".join(f"{x / 4},{y / 4}\n" for x, y in rows))
    with pytest.raises(SpotError, match="on it when multiplied by 4: these look like pixels of a smaller image"):
        plan(result, path)


def test_a_region_leaves_the_spots_in_it_and_is_part_of_the_key(result, tmp_path):
    path = tmp_path / "spots.csv"
    path.write_text("name,x,y\na,400,300\nb,900,300\nc,1400,1200\n")

    async def describe(pitch_um, mpp):
        return result.slide

    def made(region, **settings):
        row = SlideRow("a", "a.svs", spots=str(path), region=region)
        return asyncio.run(plan_slide(row, describe, Settings(**settings), result.engine))

    whole, part = made(None), made("300,200,700,200")
    assert whole.spots.names == ("a", "b", "c")
    assert part.spots.names == ("a", "b")
    assert "region 300,200,700,200" in part.spots.source
    assert len({whole.key, part.key, made(None, pyramid=True).key}) == 3
    assert made(None, pyramid=True).unit("a", 0, 2).pyramid
    with pytest.raises(InputError, match="none of the 3 spots"):
        made("0,0,10,10")


def test_values_of_another_engine_are_other_values_and_those_of_before_are_still_the_defaults(result):
    row, settings = SlideRow("a", "a.svs"), Settings()

    def key(runs_on):
        return result_key(row, "content", settings, replace(result.engine, runs_on=runs_on))

    engines = ("openvino-cpu", "openvino-cpu-bf16 avx512_bf16", "openvino-cpu-bf16 amx_bf16", "tensorrt")
    keys = {key(name) for name in (ENGINE_OF_BEFORE, *engines)}
    assert len(keys) == 1 + len(engines)
    by_an_earlier_version = "8809483839d73f454ba00de7a18275e5e726d495b333cf1eb13f0672e6864f0f"
    assert key(ENGINE_OF_BEFORE) == by_an_earlier_version
