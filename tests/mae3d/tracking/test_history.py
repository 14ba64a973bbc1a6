"""mae3d metrics: curves and summaries of runs, from what they wrote; and the journal's figures in them."""

import json
import math
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from launch.report.page import progress_section, write_report
from mae3d.metrics import main
from mae3d.tracking.history import best_of, pictures, rows_of, speed_of, summary
from mae3d.tracking.plots import plot_curves, running_mean, short_names

CONFIG = {"train": {"global_batch": 8}, "data": {"repeat_aug": 2, "shards": ["a", "b"]}}


def make_run(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_to(last: int, *, scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "epoch": step / 100,
            "loss": scale / step,
            "lr": 1e-3,
            "grad_norm": 2.0,
            "clips_per_s": 16.0 if step <= 50 else 4.0,
            "data_wait": 0.0 if step <= 50 else 0.5,
            "mfu": None,
            "skipped_steps": step // 40,
            "substituted": 0,
            "failed_saves": 0,
        }
        | ({"eval_loss": abs(step - 60) + 1.0, "eval_knn_top1": step / 200} if step % 20 == 0 else {})
        for step in range(10, last + 1, 10)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "runs" / "a", rows_to(100))
    (run / "DONE").write_text("100 steps\n")
    for name, step in (("best", 60), ("latest", 100)):
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / name).write_text(f"step-{step:08d}\n")
    return run


def test_a_summary_says_what_the_run_came_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(run)]) == 0
    told = capsys.readouterr().out
    assert told == summary(run) + "\n"
    assert f"run:     {run} (finished)\n" in told
    assert "length:  100 steps, 1.0 epochs\n" in told
    assert "loss:    0.1000 at step 10, 0.0100 at step 100\n" in told
    assert "eval_loss 41.0000 at step 100, best 1.0000 at step 60\n" in told
    assert "eval_knn_top1 0.5000 at step 100\n" in told
    # 50 steps of 16 clips at 16 a second, 50 at 4 a second: 50 s + 200 s, of these 100 s waiting.
    assert "speed:   6.4 clips/s, 4.2 min in steps, 40.0% of it waiting for data\n" in told
    assert "trouble: 2 steps skipped (gradient not finite)\n" in told
    assert f"model:   {run}/checkpoints/step-00000060 (the best; the newest is step-00000100)\n" in told
    assert f"mae3d finetune --init {run} --data.shards a b" in told


def test_a_summary_of_a_stopped_finetuning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "fine", [*rows_to(30), {"step": 32, "epoch": 0.3, "val_top1": 0.25}], few_shot=[])
    (run / "STOPPED").write_text("stopped by SIGTERM after step 32\n")
    told = summary(run)
    assert f"run:     {run} (stopped by SIGTERM after step 32; the same command goes on)" in told
    assert "length:  32 steps, 0.3 epochs" in told
    assert "val_top1 0.2500 at step 32" in told
    assert "trouble: none" in told
    assert "model:   no checkpoint yet" in told


def test_speed_counts_a_line_once_and_leaves_out_lines_without_it() -> None:
    rows = [
        {"step": 10, "clips_per_s": 5.0, "data_wait": 0.1, "mfu": 0.5},
        {"step": 15, "eval_loss": 1.0},
        {"step": 30, "clips_per_s": 20.0, "data_wait": 0.4, "mfu": 0.2},
    ]
    speed = speed_of(rows, clips_per_step=1)
    assert speed["hours"] * 3600 == pytest.approx(2 + 1)
    assert speed["clips_per_s"] == pytest.approx(10)
    assert speed["data_wait"] == pytest.approx((0.1 * 2 + 0.4) / 3)
    assert speed["mfu"] == pytest.approx(0.4)
    assert speed_of([{"step": 1, "clips_per_s": math.nan}], clips_per_step=1) == {}


def test_the_best_is_the_lowest_loss_and_the_highest_score_and_nan_is_neither() -> None:
    values = [math.nan, 2.0, 1.0, 1.0, 3.0]
    rows = [{"step": step, "eval_loss": value, "val_map": value} for step, value in enumerate(values)]
    assert best_of(rows, "eval_loss") == (2, 1.0)
    assert best_of(rows, "val_map") == (4, 3.0)
    assert best_of(rows, "val_top1") is None


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has_colour(path: Path, colour: tuple[int, int, int]) -> bool:
    return bool((picture(path) == colour).all(axis=-1).any())


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # matplotlib's first two


@pytest.mark.slow
def test_curves_of_two_runs_have_a_colour_each(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, out = make_run(tmp_path / "runs" / "b", rows_to(60, scale=3.0)), tmp_path / "curves.png"
    assert main(["plot", str(run), str(other), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"curves: {out}\n"
    assert has_colour(out, BLUE)
    assert has_colour(out, ORANGE)
    whole = picture(out).shape
    assert main(["plot", str(run), "--keys", "loss", "--out", str(out)]) == 0
    assert has_colour(out, BLUE)
    assert not has_colour(out, ORANGE)
    assert picture(out).shape[1] < whole[1]


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": math.inf, "lr": 0.0}, {"step": 2, "loss": 1.0, "lr": 1.0, "mfu": None}, {"step": 3}]
    plot_curves({tmp_path: rows}, tmp_path / "curves.png")
    with pytest.raises(ValueError, match=r"--keys mfu: in no line of metrics\.jsonl; there are step, lr, loss"):
        plot_curves({tmp_path: rows}, tmp_path / "curves.png", keys=["loss", "mfu"])


def test_no_name_of_a_run_breaks_its_curves(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    runs = [tmp_path / "$\\no{formula$", tmp_path / "two\nlines", tmp_path / os.fsdecode(b"\xff")]
    plot_curves(dict.fromkeys(runs, rows), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("command", ["summary", "plot"])
def test_bad_runs_are_one_line_and_exit_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "c.png")] if command == "plot" else []
    for folder, told in (("nowhere", "no such folder"), ("other", "no config.yaml"), ("new", "no line yet")):
        if folder == "other":
            (tmp_path / folder).mkdir()
        if folder == "new":
            make_run(tmp_path / folder, [])
        assert main([command, str(tmp_path / folder), *out]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / folder}: ")
        assert told in error
        assert error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()


def test_a_line_cut_short_by_a_kill_is_passed_over(run: Path) -> None:
    before = rows_of(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "lo')
    assert rows_of(run) == before


@pytest.mark.slow
def test_the_command_and_a_picture_that_cannot_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metrics", "plot", str(run), "--out", str(tmp_path / "no" / "c.png")])
    monkeypatch.delitem(sys.modules, "mae3d.metrics", raising=False)  # as `python -m` finds it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("mae3d.metrics", run_name="__main__")
    assert ended.value.code == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no such folder" in error


def test_a_running_mean_keeps_the_level_and_takes_the_noise() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.1, 1000)
    smooth = running_mean(noise.tolist())
    assert len(smooth) == 1000
    assert np.std(smooth) < np.std(noise) / 4
    assert smooth[0] == noise[0]
    assert running_mean([3.0] * 100) == [3.0] * 100


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert short_names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert short_names([Path("x/run"), Path("y/run"), Path("y/b")]) == ["x/run", "y/run", "y/b"]
    assert short_names([Path("x/a"), Path("x/a/")]) == ["a", "a"]


def test_the_report_shows_how_held_out_samples_fared(run: Path, tmp_path: Path) -> None:
    assert progress_section(make_run(tmp_path / "plain", [{"step": 1, "loss": 1.0}])) is None
    (run / "eval").mkdir()
    for step in range(20, 101, 20):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(run / "eval" / f"step-{step:08d}.png")
    assert [step for step, _ in pictures(run)] == [20, 40, 60, 80, 100]
    section = progress_section(run)
    assert section is not None
    (table,) = section.tables
    assert table.columns == ("step", "eval_loss", "eval_knn_top1")
    assert table.rows[0] == ("100", "41.0000", "0.5000")
    assert [row[0] for row in table.rows] == ["100", "80", "60", "40", "20"]
    assert [card.title for card in section.cards] == ["Step 100", "Step 80", "Step 40", "Step 20"]
    page = write_report(tmp_path, title="a", intro=[], facts={}, sections=[section], losses=[])
    assert page.read_text().count("data:image/") == 4


@pytest.mark.parametrize("config", [{}, {"few_shot": []}])
def test_commands_to_copy_have_their_paths_quoted(tmp_path: Path, config: dict[str, Any]) -> None:
    data = {"repeat_aug": 2, "shards": ["my shards", "b$HOME;c"]}
    run = make_run(tmp_path / "it's my run", rows_to(20), data=data, **config)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest").write_text("step-00000020\n")
    commands = [shlex.split(line[line.index("mae3d ") :]) for line in summary(run).splitlines() if "mae3d " in line]
    assert len(commands) >= 4
    for words in commands:
        assert str(run) in words
        assert all(word.startswith(str(run)) for word in words if "my run" in word)
        at = words.index("--data.shards") + 1 if "--data.shards" in words else None
        assert at is None or words[at] == "TEST" or words[at : at + 2] == data["shards"]
