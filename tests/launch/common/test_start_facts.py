"""launch/common/start_facts.py: what two processes of one start compare, and what is each machine's own."""

import platform
import sys
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from launch.common.clip_options import ClipsConfig
from launch.common.start_facts import start_facts
from launch.embed import EmbedConfig
from launch.inference.settings import EvaluateConfig
from launch.probe import ProbeConfig
from launch.training.config import FinetuneConfig, PretrainConfig
from mae3d.io.resume import local_settings
from mae3d.io.versions import sources_hash
from mae3d.model.config import MAEConfig

CLIPS = ClipsConfig(shards="s")
CONFIGS: dict[str, Any] = {
    "pretrain": PretrainConfig(model=MAEConfig()),
    "finetune": FinetuneConfig(),
    "evaluate": EvaluateConfig("r", CLIPS, "o"),
    "probe": ProbeConfig(CLIPS, CLIPS, "o", run="r"),
    "embed": EmbedConfig("o", CLIPS, run="r"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_fault_42_every_setting_is_compared_but_those_of_a_machine(name: str) -> None:
    config = CONFIGS[name]
    compared, local = start_facts(config).keys(), local_settings(config)
    names = {name for name in settings_of(config) if name not in ("train.deepspeed",)}  # a mapping, and empty
    assert names - compared == local
    assert {name.rpartition(".")[2] for name in local} <= {
        "shards", "moved", "cache", "cache_gb", "read_threads", "decode_threads", "device",
    }  # fmt: skip


def test_fault_42_other_code_of_a_hook_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = PretrainConfig(model=MAEConfig(mask_type="hk_facts:f(a=1)"))
    codes = []
    for text in ("a = 1", "a = 2"):
        Path("hk_facts.py").write_text(text)
        codes.append(start_facts(config)["code of hk_facts:f(a=1)"])
    assert codes[0] != codes[1]


def settings_of(config: Any, prefix: str = "") -> set[str]:
    names = set()
    for entry in fields(config):
        value, name = getattr(config, entry.name), f"{prefix}{entry.name}"
        names |= settings_of(value, f"{name}.") if is_dataclass(value) else {name}
    return names


@pytest.mark.parametrize("name", ["pretrain", "evaluate"])
def test_fault_42_one_relative_folder_seen_from_two_is_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = CONFIGS[name]
    config = replace(config, run=replace(config.run, dir="out")) if name == "pretrain" else replace(config, out="out")
    seen = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        seen.append(start_facts(config))
    assert {key for key in seen[0] if seen[0][key] != seen[1][key]} == {"folder"}
    assert seen[1]["folder"] == str(tmp_path / "b" / "out")


def test_fault_42_a_changed_line_of_code_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {sources_hash(tmp_path)}
    for package in ("mae3d", "pipelines", "preprocess", "launch"):
        (tmp_path / package / "part").mkdir(parents=True)
        for name in ("a.py", "part/b.py"):
            for text in ("x = 1", "x = 2"):
                (tmp_path / package / name).write_text(text)
                hashes.add(sources_hash(tmp_path))
    (tmp_path / "mae3d" / "a.py").rename(tmp_path / "mae3d" / "c.py")
    assert len(hashes | {sources_hash(tmp_path)}) == 1 + 4 * 2 * 2 + 1
    before = start_facts(CONFIGS["pretrain"])
    assert before["code"].endswith(f"sources {sources_hash()}")
    assert (before["python"], before["torch"]) == (platform.python_version(), version("torch"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert start_facts(CONFIGS["pretrain"]) == before | {"NVIDIA_TF32_OVERRIDE": "0"}
