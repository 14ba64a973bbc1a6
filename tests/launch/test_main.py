"""`mae3d`: the table of commands, the launcher's command lines, the completion in a real shell, the list of recipes."""

import json
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch import completion, recipe_list, start
from launch.__main__ import main
from launch.common.commands import ALL, COMMANDS
from launch.common.recipe_files import names

ROOT = Path(__file__).resolve().parents[2]
TO_COME = {"launch.push", "launch.runs"}


def test_every_command_is_a_program_with_a_line_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    for name, command in ALL.items():
        assert f"  {name} " in shown
        assert command.summary in shown
        assert command.module in TO_COME or find_spec(command.module)
    assert sum(len(commands) for commands in COMMANDS.values()) == len(ALL)
    programs = {f"launch.{path.stem}" for path in (ROOT / "launch").glob("[!_]*.py")}
    assert programs <= {command.module for command in ALL.values()}
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_command_gets_the_rest_and_its_exit_code_is_returned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("launch.doctor.main", lambda argv: seen.append(argv) or 75)
    assert main(["doctor", "--json", "--help"]) == 75
    assert seen == [["--json", "--help"]]
    assert main(["pretrian", "--config", "demo"]) == 2
    assert "mae3d pretrian: no such command; did you mean pretrain?" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mae3d ")


def line(*argv: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the command line that `mae3d launch` would start, shortened."""
    assert start.main(["--dry_run", *argv]) == 0
    words = shlex.split(capsys.readouterr().out)
    return [Path(word).name if word.startswith("/") else word for word in words]


PYTHON = Path(sys.executable).name


@pytest.mark.parametrize(
    ("argv", "environment", "gpus", "expected"),
    [
        (["pretrain", "--config", "a b"], {}, 0, [PYTHON, "pretrain.py", "--config", "a b"]),
        (["-n", "2", "probe", "--dry_run"], {}, 0, ["--num_gpus", "2", "probe.py", "--dry_run"]),
        (["-n", "8", "pretrain", "--help"], {}, 8, [PYTHON, "pretrain.py", "--help"]),
        (["finetune"], {}, 4, ["--num_gpus", "4", "finetune.py"]),
        (["-n", "2", "finetune"], {}, 4, ["--num_gpus", "2", "finetune.py"]),
        (["-n", "2", "finetune"], {"CUDA_VISIBLE_DEVICES": "3,5,6"}, 8, ["--include", "localhost:3,5", "finetune.py"]),
        (["finetune"], {"CUDA_VISIBLE_DEVICES": "3"}, 8, [PYTHON, "finetune.py"]),
        (["-n", "6", "embed", "--device", "cpu"], {}, 4, ["--num_gpus", "6", "embed.py", "--device", "cpu"]),
        (["--hosts", "HOSTS", "pretrain"], {}, 0, ["deepspeed", "--hostfile", "hosts", "pretrain.py"]),
        (["pretrain"], {"SLURM_JOB_ID": "7"}, 0,
         ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=1", "--export=ALL", PYTHON, "pretrain.py"]),
        (["-n", "8", "pretrain"], {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "12"}, 8,
         ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", "--export=ALL", "--ntasks=16", "--ntasks-per-node=8",
          PYTHON, "pretrain.py"]),
    ],
)  # fmt: skip
def test_the_launcher_fits_the_machine(
    argv: list[str], environment: dict[str, str], gpus: int, expected: list[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "hosts").write_text("node-a slots=2\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(start, "_gpus", lambda: [Path(f"/dev/nvidia{number}") for number in range(gpus)])
    words = line(*(str(tmp_path / "hosts") if word == "HOSTS" else word for word in argv), capsys=capsys)
    if expected[0].startswith("--"):
        assert words[:2] == ["deepspeed", "--master_port"]
        words = words[3:]
    assert words == expected


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["search"], {}, "give one of pretrain, finetune.*`mae3d search` is one process"),
        (["pretrian"], {}, "mae3d launch pretrian: give one of pretrain"),
        ([], {}, "give one of"),
        (["-n", "0", "pretrain"], {}, "-n 0 must be at least 1"),
        (["-n", "3", "pretrain"], {"CUDA_VISIBLE_DEVICES": "0,1"}, "this host shows 2 GPUs"),
        (["pretrain"], {"CUDA_VISIBLE_DEVICES": "GPU-1a,GPU-2b"}, "CUDA_VISIBLE_DEVICES=GPU-1a,GPU-2b: .* numbers"),
        (["--hosts", "none", "pretrain"], {}, "--hosts none: no such file"),
        (["-n", "2", "pretrain"], {"WORLD_SIZE": "2"}, "a launcher has started this process already"),
    ],
)
def test_what_cannot_be_launched_is_one_line(
    argv: list[str], environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = start.parser().parse_args(argv)
    with pytest.raises(ValueError, match=said):
        start.command_line(given.command, n=given.n, hosts=given.hosts, port=given.port, environment=environment)


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        start_at, start.PORT = start.PORT, port
        try:
            assert start._free_port() > port
        finally:
            start.PORT = start_at


TRIES = [  # words behind `mae3d`, the last one begun ─► what is offered
    (["pre"], ["pretrain", "preprocess", "preview"]),
    (["pretrain", "--log.wandb_m"], ["--log.wandb_mode"]),
    (["pretrain", "--log.wandb_mode", ""], ["offline", "online"]),
    (["finetune", "--train.precision", "=", "b"], ["bf16"]),
    (["finetune", "--config", "finetune_ssv2_vit_l"], ["finetune_ssv2_vit_large"]),
    (["pretrain", "--run.dir", "probe", "--train.ste"], ["--train.steps"]),
    (["pretrain", "--help", "opt"], ["optim"]),
    (["preprocess", "b"], ["build"]),
    (["preprocess", "build", "--layout", "v"], ["video"]),
    (["launch", "-n", "4", "fine"], ["finetune"]),
    (["launch", "-n", "4", "embed", "--eve"], ["--every"]),
    (["recipes", "small"], ["small_10k", "small_500"]),
    (["metrics", "plot", "--ke"], ["--keys"]),
    (["pretrain", "--data.shards", "out"], []),  # files: the shell's own
]


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"))
    tries = "\n".join(
        f"COMP_WORDS=(mae3d {shlex.join(words)}); COMP_CWORD={len(words)}; _mae3d_complete; echo ${{COMPREPLY[*]}}"
        for words, _ in TRIES
    )
    code = f"set -eu; source ./script; {tries}\ncomplete -p mae3d"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.stderr == ""
    *offered, last = done.stdout.splitlines()
    assert last == "complete -o default -F _mae3d_complete mae3d"  # files where nothing of ours fits
    assert [sorted(answer.split()) for answer in offered] == [sorted(expected) for _, expected in TRIES]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_the_same(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("zsh"))
    # The widgets of a terminal are replaced: the words come in, and what is offered goes out.
    setup = "compdef() { }\ncompset() { }\ncompadd() { shift; print -r -- $@ }\n_files() { }\n"
    setup += "typeset -A compstate\ncompstate[nmatches]=1\n"
    tries = "\n".join(
        f"words=(mae3d {shlex.join(words).replace(' = ', '=')}); CURRENT={len(words) + 1 - 2 * ('=' in words)}; "
        "_mae3d_complete"
        for words, _ in TRIES
    )
    code = f"{setup}source ./script\n{tries}\n"
    done = subprocess.run(["zsh", "-fc", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.stderr == ""
    pairs = zip(done.stdout.splitlines(), TRIES, strict=True)
    offered = [[word for word in answer.split() if word.startswith(words[-1])] for answer, (words, _) in pairs]
    assert [sorted(answer) for answer in offered] == [sorted(expected) for _, expected in TRIES]


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe_list.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in names())
    assert shown.count("source: ") == shown.count("expect: ") == len(names())
    assert recipe_list.main(["demo"]) == 0
    assert "preset: mae_vit_tiny_patch16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        recipe_list.main(["dmeo"])
    assert "did you mean demo?" in capsys.readouterr().err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "finetune"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "mae3d finetune --config"
