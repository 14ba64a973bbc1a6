"""Which decoder a run uses: tried in a child that may crash, the same on all processes, kept over restarts."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.common import machine_checks as checks
from launch.common.decode import choose_decode
from mae3d.distributed import World
from tests.support.ranks import run_ranks


def crash(code: str, *arguments: str) -> tuple[int, str, str]:
    """A child that dies of a real SIGSEGV, as DALI's decoder can."""
    return checks.run_child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")


def never(device: str, index: int, layout: str) -> str:
    raise AssertionError("nothing may be tried here")


def crashes(device: str, index: int, layout: str) -> str:
    return checks.dali_fault(device, index, layout, run=crash)


def works(device: str, index: int, layout: str) -> str:
    return ""


def decodes_jpeg(device: str, index: int, layout: str) -> str:
    return "" if layout == "jpeg" else "wrong pixels"


def decodes_video(device: str, index: int, layout: str) -> str:
    return "" if layout == "video" else "wrong pixels"


JPEG, VIDEO = {"jpeg"}, {"video"}


def world(device: str = "cuda:0") -> Any:
    return SimpleNamespace(device=torch.device(device), ranks=SimpleNamespace(rank=0), any=bool)


@pytest.mark.parametrize(
    ("asked", "stored", "fault_of", "choice", "told"),
    [
        ("auto", None, works, "mixed", ""),
        ("auto", None, crashes, "cpu", "killed by signal 11"),
        ("cpu", None, never, "cpu", ""),
        ("auto", "cpu", never, "cpu", ""),  # kept, though mixed might work now
        ("auto", "mixed", works, "mixed", ""),
        ("cpu", "mixed", never, "cpu", "the run began with mixed"),
        ("mixed", "cpu", works, "mixed", "the run began with cpu"),
        ("auto", "auto", works, "mixed", ""),  # a run of before this choice was stored
    ],
)
def test_the_choice_on_a_gpu(asked: str, stored: str | None, fault_of: Any, choice: str, told: str) -> None:
    decode, note = choose_decode(asked, stored=stored, world=world(), layouts=JPEG, fault_of=fault_of)
    assert decode == choice
    assert told in note
    assert bool(note) == bool(told)


@pytest.mark.parametrize(
    ("asked", "stored", "fault_of", "choice", "told"),
    [
        ("auto", None, never, "cpu", ""),  # no GPU has shown yet that it can
        ("auto", "cpu", never, "cpu", ""),
        ("cpu", "mixed", never, "cpu", "the run began with mixed"),
        ("mixed", None, decodes_video, "mixed", ""),
        ("mixed", "cpu", decodes_video, "mixed", "the run began with cpu"),
        ("auto", "mixed", decodes_video, "mixed", ""),
    ],
)
def test_h264_is_decoded_on_a_gpu_on_request_only(
    asked: str, stored: str | None, fault_of: Any, choice: str, told: str
) -> None:
    decode, note = choose_decode(asked, stored=stored, world=world(), layouts=VIDEO, fault_of=fault_of)
    assert decode == choice
    assert told in note
    assert bool(note) == bool(told)


@pytest.mark.parametrize(("asked", "stored"), [("mixed", None), ("auto", "mixed")])
def test_a_gpu_that_decodes_jpegs_but_no_h264_is_refused_for_the_latter(asked: str, stored: str | None) -> None:
    with pytest.raises(ValueError, match=r"data\.decode=mixed .*wrong pixels.*--data\.decode cpu"):
        choose_decode(asked, stored=stored, world=world(), layouts=VIDEO, fault_of=decodes_jpeg)


@pytest.mark.parametrize("layouts", [{"files"}, {"jpeg", "video"}])
def test_other_layouts_are_decoded_on_the_cpu_without_a_trial(layouts: set[str]) -> None:
    for asked, stored in (("auto", None), ("auto", "mixed"), ("cpu", None)):
        assert choose_decode(asked, stored=stored, world=world(), layouts=layouts, fault_of=never) == ("cpu", "")
    decode, note = choose_decode("mixed", stored=None, world=world(), layouts=layouts, fault_of=never)
    assert decode == "cpu"
    assert "layout video alone" in note


@pytest.mark.parametrize(("asked", "stored", "why"), [("mixed", None, "requested"), ("auto", "mixed", "began with")])
def test_fault_23_a_mixed_decoder_that_crashes_is_refused_where_it_would_change_the_run(
    asked: str, stored: str | None, why: str
) -> None:
    with pytest.raises(ValueError, match=rf"data\.decode=mixed .*{why}.*killed by signal 11.*--data\.decode cpu"):
        choose_decode(asked, stored=stored, world=world(), layouts=JPEG, fault_of=crashes)


def test_nothing_is_tried_on_the_cpu() -> None:
    assert choose_decode("auto", stored=None, world=world("cpu"), layouts=JPEG, fault_of=never) == ("cpu", "")
    assert (
        "began with mixed" in choose_decode("auto", stored="mixed", world=world("cpu"), layouts=JPEG, fault_of=never)[1]
    )
    with pytest.raises(ValueError, match="the device is the CPU"):
        choose_decode("mixed", stored=None, world=world("cpu"), layouts=JPEG, fault_of=never)


def _on_each_rank(started: World, failing: int) -> tuple[str, str]:
    on_gpus = dataclasses.replace(started, device=torch.device("cuda", started.ranks.rank))

    def fault_of(device: str, index: int, layout: str) -> str:
        return crashes(device, index, layout) if index == failing else ""

    return choose_decode("auto", stored=None, world=on_gpus, layouts=JPEG, fault_of=fault_of)


def test_one_process_that_cannot_makes_all_decode_on_the_cpu() -> None:
    (first, told_first), (second, told_second) = run_ranks(_on_each_rank, 1, world=2)
    assert first == second == "cpu"
    assert "another rank" in told_first
    assert "killed by signal 11" in told_second


@pytest.mark.slow
def test_the_child_really_decodes() -> None:
    assert checks.dali_fault("cpu", 0) == ""
    assert "pipeline" in checks.dali_fault("cpu", 0, "video")  # DALI decodes no H.264 without a GPU
