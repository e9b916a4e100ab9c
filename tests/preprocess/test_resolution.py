"""µm/px: found wherever a file says it, never guessed, and told where its sources contradict each other."""

import numpy as np
import pytest
import tifffile
from m2ost_preprocess.decoder import Decoder
from m2ost_preprocess.errors import UnknownResolution
from m2ost_preprocess.readers import Resolution, open_slide
from m2ost_preprocess.readers.resolution import Found, Stated, choose, of_properties, of_tiff

from tests.compat.cells import PHILIPS

OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels {}/></Image></OME>'


@pytest.mark.parametrize(
    ("description", "source", "x", "y"),
    [
        ("Aperio Image Library v12\r\n10x10|AppMag = 20|MPP = 0.4990|Left = 3", "aperio.MPP", 0.499, 0.499),
        ("Aperio Image Library v12\r\n10x10|AppMag = 20|MPP = 0,4990", "aperio.MPP", 0.499, 0.499),
        ("Aperio Image Library v12\r\n10x10|AppMag=20|MPP=0.2529|Left=3", "aperio.MPP", 0.2529, 0.2529),
        (PHILIPS, "philips.DICOM_PIXEL_SPACING", 0.5, 0.5),
        (OME.format('PhysicalSizeX="0.25" PhysicalSizeY="0.26"'), "ome.PhysicalSize", 0.25, 0.26),
        (OME.format('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.00025" PhysicalSizeYUnit="mm"'),
         "ome.PhysicalSize", 0.25, 0.25),
    ],
)  # fmt: skip
def test_a_scanners_header_says_it(description, source, x, y):
    (found,) = of_tiff([description], None)
    assert (found.source, found.x, found.y) == (source, pytest.approx(x), pytest.approx(y))


def test_the_label_of_a_philips_slide_does_not_say_it_for_the_slide():
    label = PHILIPS[
        PHILIPS.index('<DataObject ObjectType="DPScannedImage">') : PHILIPS.index("</Array></Attribute></DataObject>")
    ]
    label = label.replace(">WSI<", ">LABELIMAGE<").replace("0.0005", "0.05")
    both = PHILIPS.replace(
        '<Array><DataObject ObjectType="DPScannedImage">',
        f'<Array>{label}</Array></Attribute></DataObject><DataObject ObjectType="DPScannedImage">',
        1,
    )
    assert [(s.source, s.mpp) for s in of_tiff([both], None)] == [("philips.DICOM_PIXEL_SPACING", 0.5)]


@pytest.mark.parametrize(
    "description",
    ["", "MPP = 0.5", "Aperio|MPP = unknown", "<OME", OME.format('PhysicalSizeX="-1" PhysicalSizeY="0.5"'),
     OME.format('PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel"'),
     '<!DOCTYPE x [<!ENTITY a "b">]><OME><Image><Pixels PhysicalSizeX="1" PhysicalSizeY="1"/></Image></OME>'],
)  # fmt: skip
def test_what_is_no_figure_is_none(description):
    assert of_tiff([description], None) == []


@pytest.mark.parametrize(
    ("tags", "mpp"), [((20000.0, 20000.0, 3), 0.5), ((50800.0, 50800.0, 2), 0.5), ((2.0, 2.0, 1), None)]
)
def test_tiffs_own_tags_say_it_in_physical_units_alone(tags, mpp):
    assert [stated.mpp for stated in of_tiff([], tags)] == ([mpp] if mpp else [])


def test_the_first_source_that_can_be_true_is_taken():
    screen, scanner = Stated("tiff.resolution", 352.8, 352.8), Stated("openslide.mpp", 0.5, 0.5)
    assert choose([screen, scanner]) == Found(Resolution(0.5, "openslide.mpp"))
    assert choose([screen]) == Found(None, ("tiff.resolution says 352.8 × 352.8 µm/px, which no slide has",))
    assert choose([]) == Found()
    assert of_properties({"openslide.mpp-x": "0,25", "openslide.mpp-y": "0.25"}) == [
        Stated("openslide.mpp", 0.25, 0.25)
    ]
    assert of_properties({"openslide.mpp-x": "0.25"}) == []


def test_two_sources_that_differ_by_over_one_percent_are_told():
    header = Stated("aperio.MPP", 0.5, 0.5)
    assert choose([header, Stated("tiff.resolution", 0.504, 0.504)]).notes == ()
    assert choose([header, Stated("tiff.resolution", 0.25, 0.25)]) == Found(
        Resolution(0.5, "aperio.MPP"), ("tiff.resolution says 0.25 µm/px, aperio.MPP 0.5: the latter was taken",)
    )


def test_x_and_y_that_differ_a_little_have_a_mean_and_by_much_none():
    found = choose([Stated("openslide.mpp", 0.25, 0.26)])
    assert found.resolution == Resolution(pytest.approx(0.255), "openslide.mpp")
    assert found.notes == ("openslide.mpp says 0.25 × 0.26 µm/px: their mean was taken",)
    found = choose([Stated("openslide.mpp", 0.25, 0.5)])
    assert found.resolution is None
    assert found.notes == ("openslide.mpp says 0.25 × 0.5 µm/px: its pixels are not square; resample the slide",)


def test_why_what_a_file_says_was_not_taken_is_in_the_refusal(tmp_path):
    path = tmp_path / "screen.tif"
    options = {"tile": (128, 128), "photometric": "rgb", "resolution": (72, 72), "resolutionunit": "INCH"}
    tifffile.imwrite(path, np.full((256, 256, 3), 200, np.uint8), **options)
    with (
        Decoder(threads=0) as decoder,
        pytest.raises(
            UnknownResolution,
            match=r"carries none \(tiff\.resolution says 352\.778 × 352\.778 µm/px, which no slide has\); give it",
        ),
    ):
        decoder.describe(path, pitch_um=100)


def test_a_header_counts_whatever_the_reader(tmp_path):
    path = tmp_path / "slide.ome.tif"
    pixels = np.full((256, 256, 3), 200, np.uint8)
    tifffile.imwrite(
        path, pixels, metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, photometric="rgb"
    )
    assert open_slide(path).resolution == Resolution(0.5, "ome.PhysicalSize")
