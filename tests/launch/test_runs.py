"""runs.py: a table that fits the terminal, and a board that follows the runs and writes nothing into them."""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.report.board import MOST_PICTURES, Board
from launch.report.board_server import BoardServer
from launch.report.runs_table import lines_of
from launch.runs import main
from mae3d.io.console import text_width
from mae3d.tracking.overview import find_runs
from tests.support.pages import check_page
from tests.support.runs import as_json, make_run, row_of, tree_of

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Yield a folder of five runs, one of them damaged."""
    top = tmp_path / "runs"
    make_run(top / "pretrain" / "a_run_with_a_name_that_is_much_too_long_for_any_terminal", state="running", pictures=3)
    make_run(top / "fine" / NASTY.replace("/", ""), settings={"few_shot": {}, "optim": {"blr": 0.5}}, state="done")
    make_run(top / "東京の動画", state="stopped", settings={"optim": {"note": "</script><b>"}})
    make_run(top / "dead", state="dead", steps=200)
    (make_run(top / "broken") / "config.yaml").write_text("{[")
    return top


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 20])
def test_the_table_fits_the_terminal_and_has_every_run(runs: Path, width: int) -> None:
    lines = lines_of(list(find_runs([runs])), width)
    assert max(map(text_width, lines)) <= width
    assert lines[-1] == "5 runs, 1 running"[:width]
    assert len(lines) == 7
    running = next(line for line in lines if line.startswith("pre"))
    if width >= 40:
        assert "running" in running
    if width >= 80:
        assert re.search(r"100/1,000 .*1\.2165.* 160\.0", running), lines
        assert running.endswith("1:30 min")
    if width >= 200:
        assert "a_run_with_a_name_that_is_much_too_long_for_any_terminal" in running
        assert "ParserError" in "".join(lines)


def test_json_has_everything_and_the_command_ends_well(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--json"]) == 0
    statuses = {status["name"]: status for status in json.loads(capsys.readouterr().out)}
    assert len(statuses) == 5
    assert statuses["dead"]["step"] == 200
    assert statuses["broken"]["state"] == "damaged"
    assert main([str(runs)]) == 0
    assert "東京の動画" in capsys.readouterr().out


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--json", "--watch"], ["board"], ["board", ".", "--once", "--serve"], ["--every", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    capsys.readouterr()
    for arguments in ([str(tmp_path / "no")], ["board", str(tmp_path / "no"), "--once"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert re.fullmatch(r"error: .*no: no such folder.*\n", capsys.readouterr().err)
    assert main([str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().out


def test_watching_prints_again_until_it_is_interrupted(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("launch.runs.time.sleep", sleep)
    assert main([str(runs), "--watch", "--every", "7"]) == 0
    assert waits == [7, 7]
    assert capsys.readouterr().out.count("5 runs, 1 running") == 2


def loaded(path: Path) -> Any:
    """Return what a script of the board hands over, by its last argument."""
    text = path.read_text(encoding="utf-8")
    (argument,) = re.findall(r'JSON\.parse\(("(?:[^"\\]|\\.)*")\)\);\n\Z', text)
    assert text.startswith("// MAE3D\n")
    return json.loads(json.loads(argument))


def data_of(board: Board, name: str) -> Any:
    entries = {dict(entry["cells"])["name"]: entry for entry in loaded(board.out / "runs.js")["runs"]}
    return loaded(board.out / "data" / f"{entries[name]['id']}.js")


def test_the_board_has_all_runs_and_touches_none(runs: Path) -> None:
    before = tree_of(runs)
    board = Board(runs, runs / "board", every_s=30)
    assert board.write() == 5
    assert {name: value for name, value in tree_of(runs).items() if name != "." and not name.startswith("board")} == {
        name: value for name, value in before.items() if name != "."
    }, "the folder of the runs has got the board"
    page = check_page(board.page)
    assert "東京の動画" in page.text, "legible without scripts"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", board.page.read_text()), "nothing from outside"
    state = loaded(board.out / "runs.js")
    assert [entry["version"] == "" for entry in state["runs"]].count(True) == 1, "the damaged run has no curves"
    data = data_of(board, "dead")
    names = [curve["name"] for curve in data["curves"]]
    assert names[0] == "loss"
    assert {"grad_norm", "lr", "clips_per_s", "data_wait"} <= set(names)
    assert data["curves"][0]["points"] == [[step, float(f"{row_of(step)['loss']:.6g}")] for step in range(10, 201, 10)]
    assert data["axes"]["epoch"][-1] == [200, 4.0]
    assert data["axes"]["hours"][-1] == [200, pytest.approx(200 * 16 / 160 / 3600, rel=1e-4)]
    assert ["optim.blr", "0.001"] in data["settings"]


def test_no_text_of_a_run_can_become_html_or_code(runs: Path) -> None:
    board = Board(runs, runs / "board", every_s=30)
    board.write()
    page = check_page(board.page)
    assert all("onerror" not in attributes for _, attributes in page.tags)
    for path in (board.out / "runs.js", *(board.out / "data").iterdir()):
        loaded(path)  # one literal, whatever the names are
    script = board.page.read_text().rpartition("<script>")[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", script)


def test_only_what_has_changed_is_written_again(runs: Path) -> None:
    board = Board(runs, runs / "board", every_s=30)
    board.write()
    before = tree_of(board.out / "data")
    board.write()
    assert tree_of(board.out / "data") == before
    with (runs / "dead" / "metrics.jsonl").open("a") as file:
        file.write(as_json([row_of(210, skipped_steps=2)]))
    board.write()
    changed = dict(set(tree_of(board.out / "data").items()) - set(before.items()))
    assert len(changed.keys() - {"."}) == 1
    data = data_of(board, "dead")
    assert data["curves"][0]["points"][-1][0] == 210
    assert any(step == 210 and "skipped" in text for step, _, text in data["events"])


def test_starts_stops_and_leaps_are_events(runs: Path) -> None:
    run = runs / "dead"
    (run / "events.jsonl").write_text('{"step": 0, "time": 1.7e9, "event": "started"}\n{"step": 5, "time": "x"}\n')
    (run / "spikes.jsonl").write_text('{"step": 90, "loss": 9.5, "usual": 0.7}\n')
    board = Board(runs, runs / "board", every_s=30)
    board.write()
    events = data_of(board, "dead")["events"]
    assert [step for step, _, _ in events] == [0, 5, 90]
    assert events[0][1].startswith("2023-11-1")
    assert "9.5" in events[2][2]


def test_a_million_steps_make_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "long", steps=10, total=1_000_000)
    (run / "metrics.jsonl").write_text(as_json([row_of(step) for step in range(200, 1_000_001, 200)]))
    board = Board(tmp_path / "runs", tmp_path / "board", every_s=30)
    board.write()
    assert sum(path.stat().st_size for path in (board.out / "data").iterdir()) < 200_000
    assert data_of(board, "long")["curves"][0]["points"][-1][0] == 1_000_000


def test_pictures_are_copied_once_and_a_broken_one_is_left_out(runs: Path) -> None:
    (name,) = (status.name for status in find_runs([runs]) if status.state == "running")
    (runs / name / "eval" / "step-00000040.png").write_bytes(b"\x89PNG\r\n half of one")
    board = Board(runs, runs / "board", every_s=30)
    board.write()
    pictures = data_of(board, name)["pictures"]
    assert [step for step, _ in pictures] == [10, 20, 30]
    before = tree_of(board.out / "pictures")
    assert all((board.out / path).read_bytes()[:2] == b"\xff\xd8" for _, path in pictures)
    board.write()
    assert tree_of(board.out / "pictures") == before


def test_of_very_many_pictures_some_are_shown_the_last_among_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a", pictures=2 * MOST_PICTURES + 2)
    board = Board(tmp_path / "runs", tmp_path / "board", every_s=30)
    board.write()
    steps = [step for step, _ in data_of(board, "a")["pictures"]]
    assert MOST_PICTURES // 2 <= len(steps) <= MOST_PICTURES + 1
    assert steps[-1] == 10 * (2 * MOST_PICTURES + 2)
    assert run.is_dir()


@pytest.mark.parametrize("name", ["board.html", "runs.js", "data", "pictures"])
def test_another_programs_files_are_not_replaced(runs: Path, name: str) -> None:
    (runs / "board").mkdir()
    (runs / "board" / name).write_text("mine")
    with pytest.raises(ValueError, match=name):
        Board(runs, runs / "board", every_s=30)
    assert (runs / "board" / name).read_text() == "mine"


def test_a_board_never_lies_in_a_run(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"in the folder of a run.*--out"):
        Board(runs / "dead", runs / "dead" / "board", every_s=30)
    Board(runs / "dead", runs / "board", every_s=30).write()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """Yield the port of a server that answers for as long as the block lasts."""
    over = threading.Event()
    with BoardServer(folder, host="127.0.0.1", port=0) as server:

        def answer() -> None:
            while not over.is_set():
                server.serve(0.05)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield int(server.address.rpartition(":")[2])
        finally:
            over.set()
            thread.join()


def test_the_server_gives_the_boards_files_alone_and_to_this_machine(runs: Path) -> None:
    board = Board(runs, runs / "board", every_s=30)
    board.write()
    (board.out / "secret.txt").write_text("secret")
    (board.out / "data" / "0123456789ab.js").symlink_to(runs / "dead" / "config.yaml")

    def get(path: str, *, host: str = "", method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=bool(host))
            if host:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    with served(board.out) as port:
        assert get("/") == (200, board.page.read_bytes())
        assert get("/runs.js?1764267000") == (200, (board.out / "runs.js").read_bytes())
        one = next(path for path in (board.out / "data").iterdir() if not path.is_symlink())
        assert get(f"/data/{one.name}") == (200, one.read_bytes())
        (picture,) = list((board.out / "pictures").rglob("*10.jpg"))
        assert get(f"/{picture.relative_to(board.out)}")[0] == 200
        assert get("/board.html", method="HEAD") == (200, b"")
        for path in (
            "/secret.txt", "/data/", "/data", "/../dead/config.yaml", "/%2e%2e/dead/config.yaml", "//etc/passwd",
            "/data/../secret.txt", "/data/0123456789ab.js", "/data/0123456789ab.js%00", "/.lock", "/board.html/",
        ):  # fmt: skip
            assert get(path)[0] == 404, path
        assert get("/", host="evil.example")[0] == 403
        assert get("/", host="127.0.0.1.evil.example:80")[0] == 403
        assert get("/", host="localhost:1")[0] == 200
        assert get("/", method="POST")[0] == 501


def test_the_board_command_writes_once_or_until_it_is_interrupted(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["board", str(runs), "--once"]) == 0
    assert capsys.readouterr().out == f"5 runs: {runs / 'board' / 'board.html'}\n"
    assert loaded(runs / "board" / "runs.js")["every_s"] == 0
    waits: list[float] = []

    def wait(*arguments: Any) -> None:
        waits.append(arguments[-1])
        if len(waits) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("launch.runs.time.sleep", wait)
    assert main(["board", str(runs), "--every", "9"]) == 0
    assert waits == [9, 9]
    assert loaded(runs / "board" / "runs.js")["every_s"] == 9
    waits.clear()
    monkeypatch.setattr(BoardServer, "serve", wait)
    assert main(["board", str(runs), "--serve", "--port", "0"]) == 0
    assert re.search(r"^http://127\.0\.0\.1:\d+/$", capsys.readouterr().out, re.M)
