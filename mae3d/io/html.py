"""Pages hold all that they show: one file that can be mailed as it is, legible without scripts; nothing is fetched.

They follow the reader's light or dark scheme, and fit phones: drawings take their colours from PALETTE.

Texts, tables and pictures ─► the text of an HTML page; every text is escaped.

    body = [f"<h1>{escape(title)}</h1>", paragraph(intro), f"<section>{table(rows, columns=columns)}</section>"]
    text = page(title, body, style=".numbers td { text-align: right; }")
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mae3d.io.files import refuse_foreign

__all__ = ["PALETTE", "data_uri", "escape", "page", "paragraph", "refuse_other_page", "sheet", "table"]

# Colours by their role ─► in the light and in the dark scheme. Texts are ink, soft, accent and warn, on page or card.
PALETTE = {
    "page": ("#f4f5f7", "#14171c"),
    "card": ("#ffffff", "#1d2127"),
    "ink": ("#262a30", "#e4e7eb"),
    "soft": ("#616873", "#a2aab6"),
    "line": ("#e1e4e9", "#343a44"),
    "quiet": ("#949ba8", "#7b8494"),
    "accent": ("#1a62d6", "#6ea8ff"),
    "warm": ("#b3541e", "#f0905a"),
    "warn": ("#c9222d", "#ff7b72"),
    "bar": ("#b6d0f7", "#2f4f86"),
    "plate": ("#ffffff", "#ffffff"),  # behind pictures with captions in them, which are drawn for white
    "c0": ("#1f6feb", "#6ea8ff"),
    "c1": ("#d9480f", "#ff922b"),
    "c2": ("#2b8a3e", "#69db7c"),
    "c3": ("#ae3ec9", "#da77f2"),
    "c4": ("#0c8599", "#3bc9db"),
    "c5": ("#c2255c", "#f783ac"),
    "c6": ("#846000", "#ffd43b"),
    "c7": ("#5f3dc4", "#b197fc"),
}


def _colours(scheme: int) -> str:
    return " ".join(f"--{name}: {colours[scheme]};" for name, colours in PALETTE.items())


_STYLE = (
    f":root {{ color-scheme: light dark; {_colours(0)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_colours(1)} }} }}\n"
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 24px; line-height: 1.25; margin: 52px 0 10px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h3 { font-size: 17px; margin: 0 0 12px; overflow-wrap: anywhere; }
p { max-width: 76ch; margin: 0 0 8px; color: var(--soft); overflow-wrap: anywhere; }
small { font-weight: 400; font-size: 14px; color: var(--soft); margin-left: 8px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px;
  margin-top: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--soft); }
td { overflow-wrap: anywhere; }
.wide td { min-width: 4em; }
tbody tr:last-child > * { border-bottom: 0; }
img { display: block; max-width: 100%; height: auto; }
.sheet { overflow-x: auto; width: fit-content; max-width: 100%; background: var(--plate); border-radius: 6px; }
.sheet + .sheet { margin-top: 20px; }
svg text { fill: var(--soft); }
a { color: var(--accent); }
@media (max-width: 600px) {
  main { padding: 24px 12px 40px; } section { padding: 16px 14px; }
  h1 { font-size: 25px; } h2 { font-size: 21px; margin-top: 36px; }
  .sheet img { max-width: none; }
}
@media screen and (prefers-color-scheme: dark) { .sheet { padding: 10px 12px; } }
@media print { body { background: none; } section { break-inside: avoid; } }
""".strip()
)


def page(title: str, body: Sequence[str], *, style: str = "", script: str = "") -> str:
    """Return the text of a page.

    Args:
        title: The page's title, plain text.
        body: HTML of the page's parts, in order.
        style: CSS rules of these parts, after those that all pages share.
        script: JavaScript that makes the page handier; it holds nothing from outside this program.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="generator" content="MAE3D">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_STYLE}\n{style.strip()}\n</style></head><body><main>",
            *body,
            "</main>",
            *([f"<script>{script}</script>"] if script else []),
            "</body></html>\n",
        ]
    )


def refuse_other_page(path: Path) -> None:
    """Refuse to replace a page that `page` has not made, also before 0.3; raise ValueError."""
    refuse_foreign(path, marks=(b'content="MAE3D"', b"--ink: #262a30"))


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(
    rows: Sequence[Sequence[str]], *, columns: Sequence[str] = (), row_names: bool = False, css_class: str = ""
) -> str:
    """Return plain texts as a table, which scrolls sideways within its frame where it is too wide for the screen.

    Args:
        rows: The cells of each row.
        columns: The columns' names; empty for a table without a head.
        row_names: Whether the first cell of each row names it.
        css_class: The table's class, for rules of its own.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = []
    for cells in rows:
        row = [f"<td>{escape(cell)}</td>" for cell in cells]
        if row_names:
            row[0] = f'<th scope="row">{escape(cells[0])}</th>'
        body.append(f"<tr>{''.join(row)}</tr>")
    opening = f'<table class="{escape(css_class)}">' if css_class else "<table>"
    inside = (f"<thead><tr>{head}</tr></thead>" if head else "") + f"<tbody>{''.join(body)}</tbody>"
    return f'<div class="wide">{opening}{inside}</table></div>'


def sheet(uri: str, shows: str) -> str:
    """Return a picture that has captions in it: legible in the dark too, and as large as it is on a phone.

    Args:
        uri: of the picture.
        shows: a description for people who cannot see it.
    """
    return f'<div class="sheet"><img src="{uri}" alt="{escape(shows)}"></div>'


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes of an image of a `kind` ("png", "jpeg", ...) as a URI that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
