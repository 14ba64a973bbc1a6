"""mae3d.io.html: pages are one file, every text is escaped, nothing is fetched."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mae3d.io.html import PALETTE, data_uri, page, paragraph, table

ROOT = Path(__file__).resolve().parents[3]

NASTY = "<script>alert(\"x\")</script> & 'quoted'"


class Parsed(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_text_is_escaped() -> None:
    body = [paragraph(NASTY), table([(NASTY, NASTY)], columns=(NASTY, NASTY), row_names=True, css_class=NASTY)]
    parsed = Parsed(page(NASTY, body))
    assert "script" not in parsed.tags
    assert parsed.text.count(NASTY) == 6
    assert ("class", NASTY) in parsed.attributes


def test_a_page_fetches_nothing_and_runs_nothing() -> None:
    text = page("title", [paragraph("text")], style=".mine { color: red; }")
    parsed = Parsed(text)
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert ".mine { color: red; }" in text


def test_a_table_has_a_head_and_names_its_rows_if_they_are_given() -> None:
    parsed = Parsed(table([("a", "1"), ("b", "2")], columns=("name", "value"), row_names=True))
    assert (parsed.tags.count("tr"), parsed.tags.count("th"), parsed.tags.count("td")) == (3, 4, 2)
    assert parsed.attributes.count(("scope", "row")) == 2
    assert Parsed(table([("a", "1")])).tags == ["div", "table", "tbody", "tr", "td", "td"]


def test_an_image_is_inside_its_uri() -> None:
    head, _, data = data_uri(b"\0\1picture", "png").partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/png;base64", b"\0\1picture")


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_texts_and_curves_are_legible_on_every_ground_of_both_schemes(scheme: int) -> None:
    """WCAG 2.2: 4.5 to 1 for texts (1.4.3), 3 to 1 for what a drawing needs to be understood (1.4.11)."""
    colours = {name: pair[scheme] for name, pair in PALETTE.items()}
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("page", "card"):
        for text in ("ink", "soft", "accent", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast("#262a30", colours["plate"]) > 10, "captions in pictures are drawn in the dark ink"
    for line in ("warm", *(f"c{i}" for i in range(8))):
        assert contrast(colours[line], colours["card"]) >= 3, line
    assert contrast(colours["quiet"], colours["card"]) >= 2.5
    assert contrast("#000000", colours["page"]) > 10 if scheme == 0 else contrast("#ffffff", colours["page"]) > 10


def test_a_page_has_both_schemes_and_every_colour_of_the_palette_in_each() -> None:
    text = page("title", [])
    for name, (light, dark) in PALETTE.items():
        assert text.count(f"--{name}: {light};") == 1 + (light == dark)
        assert text.count(f"--{name}: {dark};") == 1 + (light == dark)
    assert text.index("prefers-color-scheme: dark") < text.index(f"--page: {PALETTE['page'][1]}")


def test_drawings_and_rules_take_their_colours_from_the_palette() -> None:
    """A colour of its own would be invisible in one of the schemes; classes along time, and black veils, have some."""
    pages = [*(ROOT / "launch" / "report").glob("*.py"), *(ROOT / "preprocess" / "inspect").glob("*.py")]
    assert len(pages) > 15
    for path in pages:
        for line in path.read_text(encoding="utf-8").splitlines():
            colours = re.findall(r"(?<![\w&])#(?:[0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})\b", line)
            is_own = path.name == "timeline_plots.py" or ".frame" in line
            assert not colours or is_own, f"{path.name}: {line.strip()}"


def test_a_table_scrolls_in_its_own_frame() -> None:
    text = table([("a", "1")])
    assert text.startswith('<div class="wide"><table>')
    assert text.endswith("</table></div>")
    assert ".wide { overflow-x: auto; }" in page("title", [text])
