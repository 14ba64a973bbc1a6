"""Pages in a real browser (Debian: apt-get install chromium): drawn, read out, not wider than phones, dark."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launch.report.board import Board
from launch.report.board_server import BoardServer
from launch.report.page import Card, Section, Table, write_report
from mae3d.io.html import page, paragraph, table
from tests.support.browser import BROWSER, answer, dom_of
from tests.support.runs import as_json, make_run, row_of

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium"),
]

LONG = "a_name_without_any_blank_that_is_much_longer_than_a_phone_is_wide/" * 2
OVERFLOW = "return [at.documentElement.scrollWidth, page.innerWidth];"
CURVES = """return {
  panels: [...at.querySelectorAll('#curves section h3')].map(one => one.textContent),
  paths: at.querySelectorAll('#curves path.curve').length,
  fill: [...at.querySelectorAll('#curves svg')].map(one => one.viewBox.baseVal.width / one.clientWidth),
  rows: at.querySelectorAll('#runs tbody tr').length,
  checked: at.querySelectorAll('#runs input:checked').length,
  images: [...at.images].map(one => [one.complete && one.naturalWidth > 0, one.alt]),
  differing: [...at.querySelectorAll('#differences tbody th')].map(one => one.textContent),
  events: at.querySelectorAll('#events tbody tr').length,
  html: at.querySelectorAll('main b, main i, main script').length,
};"""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Yield the written board of two runs."""
    runs = tmp_path / "runs"
    make_run(runs / f"a<b>&{LONG[:60]}".replace("/", "_"), settings={"optim": {"note": "<i>x</i>"}}, pictures=2)
    with (make_run(runs / "b", state="running") / "metrics.jsonl").open("a") as file:
        file.write(as_json([row_of(110, skipped_steps=1)]))
    board = Board(runs, runs / "board", every_s=2)
    board.write()
    return board


def check_curves(found: Any) -> None:
    assert found["panels"][0] == "loss"
    assert len(found["panels"]) == 5
    assert found["paths"] == 10
    assert (found["rows"], found["checked"]) == (2, 2)
    assert found["images"]
    assert all(is_loaded and "step" in alt for is_loaded, alt in found["images"])
    assert found["differing"] == ["optim.note"]
    assert found["events"] == 1
    assert found["html"] == 0, "names and settings of runs are text"


def test_the_board_opens_as_a_file(board: Board) -> None:
    check_curves(answer(board.page, CURVES))


def test_curves_are_drawn_at_the_size_that_they_are_shown_at(tmp_path: Path) -> None:
    """At the first drawing, when no box has a curve yet; of two runs the second one's data would draw all again."""
    make_run(tmp_path / "runs" / "a")
    board = Board(tmp_path / "runs", tmp_path / "runs" / "board", every_s=0)
    board.write()
    shares = answer(board.page, CURVES)["fill"]
    assert len(shares) == 5
    assert all(0.9 < share <= 1 for share in shares), shares


def test_the_board_opens_over_http(board: Board, tmp_path: Path) -> None:
    over = threading.Event()
    with BoardServer(board.out, host="127.0.0.1", port=0) as server:

        def serve() -> None:
            while not over.is_set():
                server.serve(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            dom = dom_of(f"http://{server.address}/", tmp_path)
        finally:
            over.set()
            thread.join()
    assert dom.count('class="curve"') == 10
    assert len(re.findall(r'<img[^>]* src="pictures/', dom)) == 1


def test_a_pointer_over_a_curve_reads_its_values_in_every_panel(board: Board) -> None:
    script = """
    const chart = at.querySelector('#panel-loss svg'), frame = chart.getBoundingClientRect();
    const x = frame.left + 54 + (frame.width - 64) * 50 / 110;
    chart.dispatchEvent(new page.PointerEvent('pointermove', {clientX: x, clientY: frame.top + 50, bubbles: true}));
    return [...at.querySelectorAll('.values')].map(one => one.textContent);"""
    texts = answer(board.page, script)
    assert len(texts) == 5
    assert f"{row_of(50)['loss']:.4f}"[:6] in texts[0]
    assert all("at 50" in text for text in texts), texts


def test_the_choice_of_a_person_stays_when_the_data_come_again(board: Board) -> None:
    script = """
    const box = at.querySelector('#runs input:checked');
    box.click();
    at.querySelector('#controls').x.value = 'epoch';
    at.querySelector('#controls').dispatchEvent(new page.Event('input'));
    page.scrollTo(0, 300);
    page.eval('board.load()');
    return [at.querySelectorAll('#runs input:checked').length, at.querySelectorAll('#curves path.curve').length,
            page.scrollY, page.location.hash];"""
    checked, paths, scrolled, address = answer(board.page, script, width=600)
    assert (checked, paths, scrolled) == (1, 5, 300)
    assert "x=epoch" in address
    assert "runs=" in address


def other_page(folder: Path) -> Path:
    """Return a page with everything that could be too wide for a phone."""
    for name in ("wide", "small"):
        Image.new("RGB", (1400 if name == "wide" else 60, 40), "red").save(folder / f"{name}.png")
    columns = [LONG, *(f"column {i}" for i in range(12))]
    section = Section(
        LONG,
        [LONG],
        [Card(LONG, LONG, {"wide.png": "wide", "small.png": "small"})],
        [Table(LONG, columns, [[LONG, *("123.456" for _ in range(12))]])],
    )
    return write_report(
        folder, title=LONG, intro=[LONG], facts={LONG: LONG}, sections=[section, section], losses=[(1, 2.0), (9, 1.0)]
    )


@pytest.mark.parametrize("width", [400, 320, 1280])
def test_no_page_scrolls_sideways(board: Board, tmp_path: Path, width: int) -> None:
    plain = tmp_path / "plain.html"
    plain.write_text(page(LONG, [f"<h1>{LONG}</h1>", paragraph(LONG), table([[LONG] * 6], columns=[LONG] * 6)]))
    for path in (board.page, other_page(tmp_path), plain):
        assert answer(path, OVERFLOW, width=width)[0] <= width, path


@pytest.mark.parametrize("dark", [False, True])
def test_the_scheme_is_the_readers(board: Board, dark: bool) -> None:
    script = """const style = page.getComputedStyle(at.body);
    return [style.backgroundColor, style.color].map(text => text.match(/\\d+/g).slice(0, 3)
      .reduce((sum, part) => sum + Number(part), 0));"""
    ground, ink = answer(board.page, script, dark=dark)
    assert (ground < 150 and ink > 500) if dark else (ground > 600 and ink < 200)
