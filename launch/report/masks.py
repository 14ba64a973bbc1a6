"""Carried masks and their figures become one page, with all that it shows inside.

write_page(Path("out/propagate.html"), results, ["bear", "camel"])        # pictures lie beside it: bear.webp
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mae3d.io.files import write_text
from mae3d.io.html import data_uri, escape, page, paragraph, sheet, table

SHOWN = 24  # videos whose pictures the page holds
_QUALITY = 85
_COLUMNS = {
    "j": "J",
    "f": "F",
    "jf": "J&F",
    "j_recall": "J recall",
    "j_decay": "J decay",
    "copy_j": "copy: J",
    "copy_f": "copy: F",
    "copy_jf": "copy: J&F",
}
_STYLE = """
.numbers th, .numbers td { white-space: nowrap; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; padding-left: 12px; }
.numbers tbody tr:first-child > * { font-weight: 650; color: var(--ink); }
"""
_READING = (
    "J is the intersection over union of a carried mask and the true one; F compares their outlines. Both go from 0 to "
    "1. 'copy' is the first mask repeated: what the carrying has to beat. The first frame is given and does not count."
)


def write_page(path: Path, results: dict[str, Any], names: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: The page; NAME.webp of each video lies beside it.
        results: The content of scores.json.
        names: The videos.
    """
    settings = [(name.replace("_", " "), str(value)) for name, value in results["settings"].items()]
    count = f"{len(names)} video{'s' if len(names) > 1 else ''}, {len(results['objects'])} objects"
    body = ["<h1>Masks carried through video</h1>", paragraph(f"{count}. {_INTRO}")]
    if results["means"]:
        body += [f"<section><h3>Scores</h3>{paragraph(_READING)}{_figures(results)}</section>"]
    for name in names[:SHOWN]:
        body.append(f"<section><h3>{escape(name)}</h3>{_pictures(path.with_name(name), name)}</section>")
    if len(names) > SHOWN:
        body.append(paragraph(f"{len(names) - SHOWN} more videos have their pictures beside this page."))
    notes = "".join(map(paragraph, results["notes"]))
    body.append(f"<section><h3>Settings</h3>{notes}{table(settings, row_names=True)}</section>")
    write_text(path, page("Masks carried through video", body, style=_STYLE))


_INTRO = (
    "The mask of the first frame is carried from frame to frame by the similarity of a frozen model's features; "
    "nothing is trained for it."
)


def _figures(results: dict[str, Any]) -> str:
    rows = [
        {"sequence": "mean", "object": ""} | results["means"],
        *(row for row in results["objects"] if row["frames"]),
    ]
    cells = [
        [f"{row['sequence']} {row['object']}".strip(), *(_cell(row.get(name)) for name in _COLUMNS)] for row in rows
    ]
    columns = ["video, object", *_COLUMNS.values()]
    return table(cells, columns=columns, row_names=True, css_class="numbers")


def _pictures(beside: Path, name: str) -> str:
    """Return the animation and the strip, which the page holds as JPEG."""
    strip = io.BytesIO()
    with Image.open(beside.with_name(f"{name}.png")) as picture:
        picture.convert("RGB").save(strip, "JPEG", quality=_QUALITY)
    moving = beside.with_name(f"{name}.webp").read_bytes()
    shows = "carried masks in colour over the frames, the first mask repeated and, if known, the true ones"
    return "".join(
        sheet(uri, f"{name}, {kind}: {shows}")
        for kind, uri in (("animation", data_uri(moving, "webp")), ("strip", data_uri(strip.getvalue(), "jpeg")))
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
