"""Pages are checked alike, whichever command made them: one file, legible for all, on phones and in the dark."""

import re
from html.parser import HTMLParser
from pathlib import Path

_FETCHING = ("src", "href", "data", "poster", "srcset", "action")


class Page(HTMLParser):
    """The tags of a page with their attributes, the table or wide frame that each is in, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.bare_tables = 0
        self._wide: list[bool] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "div":
            self._wide.append("wide" in attributes.get("class", "").split())
        if tag == "table" and not any(self._wide):
            self.bare_tables += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._wide.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(path: Path, *, has_classes: bool = False) -> Page:
    """Check a page that a command has written, and return it.

    Args:
        path: of the page.
        has_classes: whether classes have colours of their own, on either scheme.
    """
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "color-scheme: light dark" in text
    assert "prefers-color-scheme: dark" in text
    for image in page.all("img"):
        assert image.get("alt", "").strip(), f"{path}: a picture without a description: {image.get('src', '')[:40]}"
    for drawing in page.all("svg"):
        assert drawing.get("aria-label", "").strip(), f"{path}: a drawing without a description"
        assert drawing["role"] == "img"
    assert not page.bare_tables, f"{path}: a table outside a frame that scrolls"
    for tag, attributes in page.tags:
        for name in _FETCHING:
            assert attributes.get(name, "#").startswith(("#", "data:", "file:")), f"{path}: <{tag} {name}>"
        assert not any(name.startswith("on") for name in attributes)
        colours = " ".join(attributes.get(name, "") for name in ("style", "fill", "stroke"))
        assert has_classes or not re.search(r"#[0-9a-f]{3,8}\b", colours), f"{path}: <{tag}> is of one scheme"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    return page
