"""The commands find a hub by HF_ENDPOINT: push, and others that take a model by its name, as processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mae3d
from mae3d.model.mae import MAE
from tests.launch.test_export import CONFIG, make_run, same
from tests.support.hub_server import TOKEN, Hub

pytestmark = pytest.mark.peers
ROOT = Path(__file__).resolve().parents[2]


def run_command(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    of_hub = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | of_hub | environment,
        capture_output=True,
        encoding="utf-8",
    )


def test_a_model_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    run, home = make_run(tmp_path / "run", MAE(CONFIG)), tmp_path / "home"
    home.mkdir()
    pushed = run_command(hub, home, str(ROOT / "launch" / "push.py"), str(run), "org/name", "--private")
    assert pushed.returncode == 0, pushed.stderr
    export = str(ROOT / "launch" / "export.py")
    exported = run_command(hub, home, export, "org/name", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr
    assert same(mae3d.load_model(tmp_path / "out"), mae3d.load_model(run))
    offline = run_command(hub, home, export, "hf://org/name", str(tmp_path / "again"), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    (tmp_path / "empty").mkdir()
    absent = run_command(hub, tmp_path / "empty", export, "org/name", str(tmp_path / "no"), HF_HUB_OFFLINE="1")
    assert absent.returncode == 3
    assert absent.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE" in absent.stderr
    unknown = run_command(hub, home, export, "org/other", str(tmp_path / "no"))
    assert unknown.returncode == 2
    assert "no such model, or it is private" in unknown.stderr
