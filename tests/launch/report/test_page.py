"""Pages: one file, escaped, with its images inside and nothing from outside; the loss curve is well-formed."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from launch.report.page import Card, Section, Table, loss_curve, read_losses, write_report
from tests.support.pages import check_page

NASTY = "<script>alert(\"x\")</script> & 'quoted'"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(
    folder: Path, *, text: str = "plain", losses: list[tuple[int, float]] | None = None, sections: int = 1
) -> Page:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4), "red").save(folder / "images" / f"{name}.png")
    section = Section(
        text,
        [text],
        [Card(text, text, {"images/a.png": text})],
        [Table(text, [text, text], [[text, text]])],
        {"images/b.png": text},
    )
    path = write_report(
        folder, title=text, intro=[text], facts={text: text}, sections=[section] * sections, losses=losses or []
    )
    assert path == folder / "index.html"
    check_page(path)
    return Page(path)


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, text=NASTY)
    assert "script" not in page.tags
    # Title twice, intro, fact twice; of the section: title, intro, table's caption, two columns, two cells, card twice.
    assert page.text.count(NASTY) == 14
    assert page.attributes.count(("alt", NASTY)) == 2


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, losses=[(1, 2.0), (2, 1.0)], sections=2)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    sources = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 6  # two links to the sections, two images each
    assert all(source.startswith(("#part", "data:image/")) for source in sources)
    assert {source.removeprefix("#") for source in sources if source[0] == "#"} <= {
        value for name, value in page.attributes if name == "id"
    }
    assert "url(" not in (tmp_path / "index.html").read_text()


def inlined(page: Page) -> list[tuple[str, bytes]]:
    """Media type and bytes of each image."""
    found = [(value or "").partition(";base64,") for name, value in page.attributes if name == "src"]
    return [(kind.removeprefix("data:"), base64.b64decode(data, validate=True)) for kind, _, data in found]


def test_images_are_inside_as_they_are(tmp_path: Path) -> None:
    images = inlined(page_of(tmp_path))
    assert images == [("image/png", (tmp_path / "images" / f"{name}.png").read_bytes()) for name in ("b", "a")]


def test_a_large_png_of_footage_is_inside_as_a_jpeg(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = (128 + rng.normal(0, 12, (200, 300, 1))).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    page_of(tmp_path)
    Image.fromarray(noisy).save(tmp_path / "images" / "noisy.png")
    sections = [Section("s", [], [Card("c", "", {"images/noisy.png": "noise"})])]
    path = write_report(tmp_path, title="t", intro=[], facts={}, sections=sections, losses=[])
    ((kind, data),) = inlined(Page(path))
    assert kind == "image/jpeg"
    assert len(data) < (tmp_path / "images" / "noisy.png").stat().st_size / 2
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(np.asarray(image).astype(int) - noisy).mean() < 5


def test_the_curve_is_there_only_with_losses(tmp_path: Path) -> None:
    assert "svg" in page_of(tmp_path, losses=[(1, 2.0)]).tags
    assert "svg" not in page_of(tmp_path).tags


@pytest.mark.parametrize(
    "losses",
    [[(0, 1.0)], [(10, 0.5), (20, 0.5)], [(i, 1e-3 / (i + 1)) for i in range(500)], [(5, -1.0), (6, 1e4)]],
)
def test_a_curve_is_well_formed_and_stays_inside(losses: list[tuple[int, float]]) -> None:
    root = ElementTree.fromstring(loss_curve(losses))
    lines = root.findall("polyline")
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == len(losses)
        assert all(0 <= x <= 480 and 0 <= y <= 270 for x, y in points)


def test_a_long_run_makes_a_small_curve_to_its_last_step() -> None:
    root = ElementTree.fromstring(loss_curve([(i, 1.0 + i % 7) for i in range(100_000)]))
    for line in root.findall("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert 500 < len(points) <= 600
        assert points[-1][0] == 466  # the right edge of the plot


def test_a_falling_loss_falls_on_the_page() -> None:
    root = ElementTree.fromstring(loss_curve([(i, 10.0 - i) for i in range(10)]))
    heights = [float(point.split(",")[1]) for point in root.findall("polyline")[0].attrib["points"].split()]
    assert heights == sorted(heights)


def test_metrics_are_read_and_broken_lines_passed_over(tmp_path: Path) -> None:
    lines = [{"step": 10, "loss": 1.5, "lr": 0.1}, {"step": 20, "lr": 0.1}, {"step": 30, "loss": float("nan")}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 40, "loss": 1.2}\n{"step": 50, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_losses(tmp_path) == [(10, 1.5), (40, 1.2)]
    assert read_losses(tmp_path / "none") == []
