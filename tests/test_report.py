"""mae3d.report: one page, escaped, without anything from outside; the loss curve is well-formed."""

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mae3d.report import Card, Table, loss_curve, read_losses, write_report

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


def page_of(folder: Path, *, text: str = "plain", losses: list[tuple[int, float]] | None = None) -> Page:
    path = write_report(
        folder,
        title=text,
        intro=[text],
        facts={text: text},
        table=Table(text, [text, text], [[text, text]]),
        cards=[Card(text, text, {"images/a.png": text})],
        losses=losses or [],
    )
    assert path == folder / "index.html"
    return Page(path)


def test_every_text_is_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, text=NASTY)
    assert "script" not in page.tags
    assert page.text.count(NASTY) == 12  # title twice, intro, fact twice, caption, columns, row twice each, card twice
    assert ("alt", NASTY) in page.attributes


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, losses=[(1, 2.0), (2, 1.0)])
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert [value for name, value in page.attributes if name in ("src", "href")] == ["images/a.png"]
    assert "url(" not in (tmp_path / "index.html").read_text()


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
        assert all(0 <= x <= 640 and 0 <= y <= 300 for x, y in points)


def test_a_long_run_makes_a_small_curve_to_its_last_step() -> None:
    root = ElementTree.fromstring(loss_curve([(i, 1.0 + i % 7) for i in range(100_000)]))
    for line in root.findall("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert 500 < len(points) <= 600
        assert points[-1][0] == 626  # the right edge of the plot


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
