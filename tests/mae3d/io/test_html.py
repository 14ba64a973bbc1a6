"""mae3d.io.html: pages are one file, every text is escaped, nothing is fetched."""

import base64
from html.parser import HTMLParser

from mae3d.io.html import data_uri, page, paragraph, table

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
