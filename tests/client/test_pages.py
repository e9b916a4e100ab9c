"""The pages, driven in a real headless Chromium as a person would: type, click, choose, look."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from m2ost_client.reports import Failure, Row, archive_page, slide_page
from m2ost_client.reports.gene_maps import map_data
from playwright.sync_api import sync_playwright

from tests.support.data import REPOSITORY

from .test_exports import empty, metadata

pytestmark = pytest.mark.usefixtures("heavy")

BUNDLED = REPOSITORY / "build" / "browser"
HOSTILE = "</script><img src=x onerror=\"document.title='run'\">\"'&é\u2028"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


@pytest.fixture(scope="module")
def chromium():
    on_path = (shutil.which(name) for name in ("chromium-headless-shell", "chromium", "google-chrome"))
    executable = BUNDLED / "chromium" if BUNDLED.exists() else next(filter(None, on_path), None)
    if executable is None:
        reason = "no Chromium: `make build/browser` gets one where npm is, or install Debian's chromium-headless-shell"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    libraries = ":".join(filter(None, (str(BUNDLED / "lib"), os.environ.get("LD_LIBRARY_PATH"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            chromium_sandbox=False,
            args=["--no-zygote", "--disable-gpu"],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page from its file; whatever it says on the console or fetches fails the test."""

    @contextmanager
    def open_page(html, **options):
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        said, fetched = [], []
        page = chromium.new_page(**options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(file.as_uri())
        yield page
        page.wait_for_timeout(50)
        page.close()
        assert said == []
        assert [url for url in fetched if not url.startswith("data:")] == [file.as_uri()]

    return open_page


def row(i, **changes):
    default = Row(
        name=f"slide {i}",
        page=f"slide%20{i}.report.html",
        slide=f"slides/slide {i}.svs",
        spots=100 + i,
        valid=100 + i,
        mpp=0.25,
        mpp_source="aperio.MPP",
        tissue=0.5,
        spots_per_s=30.0,
        finished=f"2026-11-25T03:{i % 60:02d}:00+00:00",
        release="c" * 64,
        trained=True,
        thumbnail=PIXEL,
    )
    return replace(default, **changes)


def names(page):
    return page.locator("#rows td.name").evaluate_all("cells => cells.map(cell => cell.firstChild.textContent)")


def pixel(page, x, y):
    """RGBA of the map, read from a copy."""
    return page.evaluate(
        """([x, y]) => {
          const copy = new OffscreenCanvas(1, 1).getContext("2d");
          copy.drawImage(document.getElementById("canvas"), -x, -y);
          return [...copy.getImageData(0, 0, 1, 1).data];
        }""",
        [x, y],
    )


def expected_colour(result, gene, spot):
    """RGBA of a spot in a gene's map, computed here from the expression itself."""
    import matplotlib

    values = result.expression[result.status == 0, result.engine.genes.index(gene)].astype(float)
    low, high = np.percentile(values, [1, 99])
    level = round(float(np.clip((values[spot] - low) / (high - low), 0, 1)) * 254)
    return [*(round(255 * c) for c in matplotlib.colormaps["magma"](level / 254)[:3]), 255]


def test_a_gene_is_chosen_and_the_picture_is_its_map(result, opened):
    facts = metadata(result, finished="2026-11-25T03:00:00+00:00", versions={"python": "3.11"})
    with opened(slide_page(result, facts, ["B2M"])) as page:
        assert "UNTRAINED" in page.locator(".notice").inner_text()
        # 400 px of overview for 2000 px of slide: the first spot covers 0 to 20.
        assert page.locator("#gene option:checked").inner_text() == "B2M"
        assert pixel(page, 10, 10) == expected_colour(result, "B2M", 0)
        page.locator("#gene").select_option(label="FN1")
        assert pixel(page, 10, 10) == expected_colour(result, "FN1", 0)
        assert pixel(page, 30, 10) == expected_colour(result, "FN1", 1)
        assert pixel(page, 390, 290) == [0, 0, 0, 0]
        # The spot without a value is not drawn.
        assert pixel(page, 70, 10) == [0, 0, 0, 0]
        heights = page.locator("#histogram rect").evaluate_all("bars => bars.map(bar => +bar.getAttribute('height'))")
        counts = np.histogram(result.expression[result.status == 0, 2], 24)[0]
        np.testing.assert_allclose(heights, 98 * counts / counts.max(), atol=1e-6)
        page.get_by_role("button", name="ERBB2").click()
        assert page.locator("#gene option:checked").inner_text() == "ERBB2"
        assert pixel(page, 10, 10) == expected_colour(result, "ERBB2", 0)
        page.locator("#gene").select_option("")
        assert not page.locator("#histogram").is_visible()
        assert pixel(page, 10, 10) not in ([0, 0, 0, 0], expected_colour(result, "ERBB2", 0))


def test_squares_of_a_grid_meet_without_a_seam(result, opened):
    # A grid's centres are whole pixels, its pitch is not: 100.2 px here, of which the picture shows a fifth.
    steps = np.arange(10) * 100.2 + 50.1
    spots = replace(
        result.spots, centers=np.floor([[x, 50] for x in steps]), names=result.spots.names[:10], pitch_px=100.2
    )
    values = {"expression": result.expression[10:20], "status": result.status[10:20]}
    with opened(slide_page(replace(result, spots=spots, **values), {}, ["B2M"])) as page:
        assert all(pixel(page, x, 10)[3] == 255 for x in range(200))
        assert pixel(page, 202, 10)[3] == 0


def test_a_spot_tells_its_value_and_statuses_are_counted(result, opened):
    with opened(slide_page(result, metadata(result), ["DDX5"])) as page:
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 250 / 2000, box["y"] + box["height"] * 50 / 1500)
        said = page.locator("#readout").inner_text()
        assert said.endswith("at x 250, y 50 px")
        assert abs(float(said.split()[2]) - result.expression[2, 0]) < 0.05
        statuses = page.locator("section", has_text="Spots by status").locator("tr").all_inner_texts()
        assert [s.split()[0] for s in statuses] == ["OK", "OUTSIDE_SLIDE"]
        assert page.locator("section", has_text="Release").get_by_text(result.engine.release_sha256).count() == 1


def test_hostile_names_are_text(result, opened):
    engine = replace(result.engine, genes=(HOSTILE, *result.engine.genes[1:]), trained=True)
    result = replace(result, name=HOSTILE, engine=engine, slide=replace(result.slide, note=HOSTILE))
    with opened(slide_page(result, metadata(result, slide=HOSTILE), [HOSTILE])) as page:
        assert page.locator("h1").text_content() == HOSTILE
        assert page.locator("#gene option:checked").text_content() == HOSTILE
        assert page.title() != "run"
        assert page.locator(".notice").count() == 0
    failure = Failure(slide=HOSTILE, reason=HOSTILE)
    with opened(archive_page(HOSTILE, [row(1, name=HOSTILE, slide=HOSTILE, mpp_source=HOSTILE)], [failure])) as page:
        assert names(page) == [HOSTILE, HOSTILE]
        assert page.title() != "run"


def test_a_script_that_got_in_would_not_run_nor_fetch(result, chromium, tmp_path):
    injected = "<script>document.title = 'run'</script><img src='http://127.0.0.1:9/x'>"
    file = tmp_path / "page.html"
    file.write_text(slide_page(result, metadata(result)).replace("</main>", injected + "</main>"), encoding="utf-8")
    page = chromium.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(file.as_uri())
    assert page.title() != "run"
    assert len([text for text in refused if "Content Security Policy" in text]) == 2
    page.close()


def test_without_scripts_and_without_spots_there_is_still_a_page(result, opened):
    with opened(slide_page(result, metadata(result)), java_script_enabled=False) as page:
        assert page.locator("#static").is_visible()
        assert page.locator("noscript p").is_visible()
    with opened(slide_page(empty(result), {})) as page:
        assert page.get_by_text("No spots: nothing was scored.").is_visible()
    with opened(archive_page("nothing", [])) as page:
        assert page.locator("#page").inner_text() == "none found"


def test_a_budget_keeps_the_most_variable_genes_and_those_asked_for(result):
    data = map_data(result, ["DDX5"], budget_bytes=2 * 79)
    variances = result.expression[result.status == 0].var(axis=0)
    assert [gene["name"] for gene in data["genes"]] == ["DDX5", result.engine.genes[int(variances[1:].argmax()) + 1]]


def test_the_index_searches_sorts_and_turns_pages(opened):
    rows = [row(i) for i in range(10_000)]
    rows[42] = row(42, valid=100, mpp=None, mpp_source=None, name="nested/Präparat")
    failures = [Failure(slide="lost.svs", reason="truncated: no directory at its end")]
    html = archive_page("archive", rows, failures)
    assert len(html) < 10_000 * 500  # beside their thumbnails, which are PIXEL here
    with opened(html) as page:
        assert page.locator("#count").inner_text() == "10,001 slides"
        assert page.locator("#rows tr").count() == 100
        assert names(page)[0] == "lost.svs"
        page.locator("#next").click()
        assert page.locator("#page").inner_text() == "101–200 of 10,001"
        assert page.locator("#previous").is_enabled()

        page.get_by_role("button", name="Spots", exact=True).click()
        assert names(page)[:2] == ["slide 0", "slide 1"]
        page.get_by_role("button", name="Spots", exact=True).click()
        assert names(page)[:2] == ["slide 9999", "slide 9998"]
        assert page.locator("th[data-key=spots]").get_attribute("aria-sort") == "descending"

        page.locator("#search").press_sequentially("TRUNC direc")
        assert names(page) == ["lost.svs"]
        assert page.locator("#count").inner_text() == "1 of 10,001 slides"
        page.locator("#search").fill("präp")
        assert page.locator(".state").inner_text() == "42 without a value"
        page.locator("#search").fill("nowhere")
        assert page.locator("#rows tr").count() == 0
        page.locator("#search").fill("")
        page.locator("#state").select_option("failed")
        assert names(page) == ["lost.svs"]
        page.locator("#state").select_option("")
        # What has no µm/px comes last, up and down.
        for _ in "ud":
            page.get_by_role("button", name="µm/px", exact=True).click()
            assert names(page)[0] not in ("lost.svs", "nested/Präparat")


def test_a_link_of_the_index_leads_to_the_slides_page(opened, tmp_path):
    name = "a#b ?100%"
    (tmp_path / f"{name}.report.html").write_text("<h1>it</h1>", encoding="utf-8")
    with opened(archive_page("archive", [row(1, name=name, page="a%23b%20%3F100%25.report.html")])) as page:
        address = page.get_by_role("link", name=name).evaluate("link => link.href")
    assert Path(unquote(address.removeprefix("file://"))).read_text(encoding="utf-8") == "<h1>it</h1>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(result, opened, scheme):
    # WCAG 2.2 AA: 4.5:1, computed by the browser's own colours.
    pages = (
        slide_page(result, metadata(result), ["B2M"]),
        archive_page("archive", [row(1), row(2, valid=3), row(3, trained=False)], [Failure(slide="x", reason="y")]),
    )
    for html in pages:
        with opened(html, color_scheme=scheme) as page:
            ratios = page.evaluate(CONTRASTS)
            assert len(ratios) > 15
            assert [r for r in ratios if r[0] < 4.5] == []


CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const holds = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll("main *")]
    .filter((e) => e.checkVisibility() && !e.closest("svg") && !e.disabled && holds(e))
    .map((e) => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
    });
}"""
