"""The documentation holds: links, pictures, blocks of Python, the fault table, the names of rooms and of the API."""

import ast
import configparser
import fnmatch
import io
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mae3d
import pipelines
import preprocess
from mae3d.io.contact_sheet import filmstrip
from tests.support.media import make_video

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Options of deepspeed, docker, pip and SLURM, which the pages name beside ours.
OTHERS_OPTIONS = {
    *("--hostfile", "--master_addr", "--no_ssh", "--node_rank", "--num_gpus", "--nproc-per-node", "--no-deps"),
    *("--launcher", "--launcher_args", "--mca", "--nthreads", "--nworkers"),
    *("--gpus", "--ipc", "--no-cache-dir", "--read-only", "--rm", "--shm-size", "--tmpfs", "--user"),
    *("--array", "--chdir", "--export", "--gpus-per-task", "--nodes", "--ntasks-per-node", "--signal", "--time"),
}
# What sources name beside those, and whose it is.
NAMED_IN_SOURCES = {
    *("--accent", "--bar", "--ink", "--line", "--soft"),  # variables of CSS
    *("--cpus", "--logdir", "--query-gpu"),  # docker, TensorBoard, nvidia-smi
    *("--cpus-per-task", "--kill-on-bad-exit", "--ntasks"),  # SLURM
    *("--include", "--world_info"),  # deepspeed
    *("--local_rank", "--master-port", "--master_port"),  # what deepspeed and torchrun add
    *("--model-ema-warmup",),  # timm's
    *("--some-key", "--some_key"),  # any option, in the two ways to spell it
}
NOT_RUN = "# not run: "  # the first line of a block that needs more than the folder of `workplace`


def python_blocks() -> list[pytest.ParameterSet]:
    """Return the blocks of Python of all pages, each with the place where it begins."""
    blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start(1)) + 1
            blocks.append(pytest.param(match[1], id=f"{page.name}:{line}"))
    return blocks


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.fixture
def workplace(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Yield the current folder of the blocks: a model in runs/a, video.mp4, and a dataset in shards."""
    sizes = {"img_size": 32, "num_frames": 4, "mask_ratio": 0.75}
    small = {"embed_dim": 24, "depth": 6, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1}
    config = mae3d.MAEConfig(preset="mae_vit_tiny_patch16", decoder_num_heads=2, **sizes, **small)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    mae3d.save_model(mae3d.MAE(config), tmp_path / "runs" / "a" / "model.safetensors")
    make_video(tmp_path / "video.mp4", 30)
    (tmp_path / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", python_blocks())
def test_a_block_of_python_runs_as_it_stands(code: str, workplace: Path) -> None:
    if code.startswith(NOT_RUN):
        assert len(code.splitlines()[0]) > len(NOT_RUN) + 10, "say what the block needs"
        return
    torch.manual_seed(0)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Return the options of all commands, from their help."""
    mains: list[tuple[str, list[str]]] = [(f"launch.{path.stem}", []) for path in (ROOT / "launch").glob("[!_]*.py")]
    mains += [
        ("preprocess.__main__", [job])
        for job in ("build", "merge", "split", "curate", "verify", "report", "inspect", "demo")
    ]
    mains += [
        ("mae3d.metrics", ["plot"]),
        ("mae3d.checkpoint", ["inspect"]),
        ("benchmarks.gpu", []),
        ("launch.runs", []),
        ("launch.runs", ["board"]),
    ]
    with redirect_stdout(io.StringIO()) as shown:
        for module, arguments in mains:
            with pytest.raises(SystemExit):
                import_module(module).main([*arguments, "--help", "all"])
        import_module("launch.__main__").main(["--help"])
    names = {name.rstrip(".") for name in re.findall(r"--[\w.-]+", shown.getvalue())}
    sections = {name.rpartition(".")[0] for name in names if "." in name}
    return {"--help", *names, *sections}


def test_every_option_of_the_pages_exists(options: set[str]) -> None:
    known = options | OTHERS_OPTIONS
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "migration.md":  # the last column is ours
            text = "\n".join(line.split("|")[-2] for line in text.splitlines() if line.startswith("| "))
        used = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))
        assert used <= known, f"{page.name}: {sorted(used - known)}"


def strings_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings of a source with their lines; * for what is filled in."""
    parts: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield node.lineno, "".join(str(one.value) if isinstance(one, ast.Constant) else "*" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.lineno, node.value


def test_every_option_of_the_messages_and_docstrings_exists(options: set[str]) -> None:
    known, unknown = options | OTHERS_OPTIONS | NAMED_IN_SOURCES, []
    for package in ("mae3d", "pipelines", "preprocess", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for line, string in strings_of(ast.parse(text)) if re.search("--[a-z]", text) else ():
                unknown += [
                    f"{path.relative_to(ROOT)}:{line}: {option}"
                    for option in re.findall(r"(?<![\w-])(?<!var\()--[a-z][\w.*-]*[\w*]", string)
                    if option not in known and not ("*" in option and fnmatch.filter(known, option))
                ]
    assert not unknown


def test_the_readme_fits_on_a_few_screens() -> None:
    assert (ROOT / "README.md").stat().st_size <= 9000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "The masked autoencoder" in api  # docstrings, not only names
    assert (tmp_path / "benchmarks" / "motion.png").is_file()  # files from outside docs/


def test_the_fault_table_has_a_row_per_fault_and_names_every_test() -> None:
    faults = runpy.run_path(str(DOCS / "faults.py"))
    text, tests = (DOCS / "failures.md").read_text(encoding="utf-8"), faults["tests_by_fault"]()
    rows = [int(match[1]) for match in faults["ROW"].finditer(text)]
    assert len(rows) == len(set(rows))
    assert set(tests) <= set(rows), "a test has a number without a row in docs/failures.md"
    assert faults["filled"](text, tests) == text, "update the table: python docs/faults.py"


def test_the_architecture_names_every_room() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for package in ("mae3d", "preprocess", "pipelines", "launch"):
        for room in (ROOT / package).iterdir():
            if (room / "__init__.py").is_file() or room.name == "recipes":
                assert f"`{package}/{room.name}/`" in text
    for path in re.findall(r"`((?:mae3d|preprocess|pipelines|launch|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_api_has_every_public_name() -> None:
    shown = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(shown) == {
        f"{package.__name__}.{owner}.{name}"
        for package in (mae3d, pipelines, preprocess)
        for name, owner in package._OWNERS.items()
    }
    for package in (mae3d, pipelines, preprocess):
        assert all(getattr(package, name).__name__ == name for name in package._OWNERS)
        assert set(package._OWNERS) <= set(dir(package))
        with pytest.raises(ImportError):
            import_module(f"{package.__name__}.no_such_name")


def test_sources_name_only_pages_of_the_repository() -> None:
    folders = ("mae3d", "pipelines", "preprocess", "launch", "tests", "benchmarks", "docker", "docs", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths += [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    kinds = ("", ".py", ".yaml", ".yml", ".md", ".cfg", ".toml", ".sbatch")
    for path in paths:
        if not path.is_file() or path.suffix not in kinds or path == Path(__file__):
            continue
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        assert not re.search(r"\bFAULTS \d", text), f"{name}: write `row N of docs/failures.md`"
        for page in re.findall(r"(?<![\w/.*-])((?:docs|benchmarks|tests|reference)/[\w/-]+\.md)\b", text):
            assert (ROOT / page).is_file(), f"{name}: {page}"
        assert path.parent == DOCS or path.name == "mkdocs.yml" or not re.search(r"(?<![\w/])upstream\.md", text), (
            f"{name}: write docs/upstream.md"
        )


def test_the_promised_versions_of_python_are_those_that_are_tested() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    versions = re.findall(r"Python :: ([\d.]+)", config["metadata"]["classifiers"])
    makefile = re.search(r"^VERSIONS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert makefile is not None
    assert makefile[1].split() == versions
    assert config["options"]["python_requires"] == f">={versions[0]}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == versions


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_matrix_runs_what_is_installed_and_says_what_is_missing(tmp_path: Path) -> None:
    """A Makefile with a `quick` that fails under 3.13 stands in for hours of installations."""
    real = (ROOT / "Makefile").read_text()
    assert "\nquick: install" in real
    (tmp_path / "real.mk").write_text(real.replace("\nquick: install", "\nreal-quick: install"))
    (tmp_path / "Makefile").write_text(
        "include real.mk\nquick:\n\t@echo $(PYTHON) $(VENV); test $(PYTHON) != python3.13\n"
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python3", "python3.12", "python3.13"):
        (programs / name).symlink_to(sys.executable)
    shim = programs / "python3.14"  # as pyenv's for a version that is not active
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    command = [str(shutil.which("make")), "matrix"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stdout.splitlines() if line.startswith("python")]
    assert lines == [
        "python3.11: not installed, left out",
        "python3.12 out/matrix/3.12",
        "python3.12: passed",
        "python3.13 out/matrix/3.13",
        "python3.13: FAILED",
        "python3.14: not installed, left out",
    ]


def test_the_picture_of_the_masks_is_up_to_date() -> None:
    rows = runpy.run_path(str(DOCS / "masks.py"))["draw_masks"]()
    assert len(rows) == 9
    drawn = np.asarray(filmstrip(rows)).astype(int)
    with Image.open(DOCS / "masks.png") as opened:
        kept = np.asarray(opened.convert("RGB")).astype(int)
    assert kept.shape == drawn.shape, "draw it anew: python docs/masks.py"
    # A token is 256 pixels; the rest is for letters, which another version of Pillow may draw otherwise.
    is_frame = np.zeros(drawn.shape[:2], dtype=bool)
    for row in range(len(rows)):
        is_frame[row * 123 + 23 : (row + 1) * 123 - 4] = True
    other = (np.abs(kept - drawn).max(axis=-1) > 12) & is_frame
    assert not other.any(), "draw it anew: python docs/masks.py"


# What runs on a GPU otherwise than on a CPU names one of these.
OF_A_GPU = re.compile(
    r"torch\.cuda\.|\bis_cuda\b|pin_memory\(|\.type [!=]= \"c(?:pu|uda)\"|non_blocking=|autocast\(|hw_decoder_load="
)


def test_the_list_of_a_gpus_lines_has_them_all_and_no_other() -> None:
    listed = set(re.findall(r"`(\w[\w/]*\.py:[\w.]+)`", (DOCS / "gpu.md").read_text(encoding="utf-8")))
    there, missing, files = set(), [], {place.partition(":")[0] for place in listed}
    for package in ("mae3d", "pipelines", "launch", "preprocess"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
            if not OF_A_GPU.search(text) and file not in files:
                continue
            for name, source in functions_of(ast.parse(text), text.splitlines()):
                place = f"{file}:{name}"
                there.add(place)
                parts = name.split(".")
                above = {f"{file}:{'.'.join(parts[:depth])}" for depth in range(1, len(parts) + 1)}
                if source and OF_A_GPU.search(source) and not above & listed:
                    missing.append(place)
    assert not missing, "not in docs/gpu.md"
    assert not listed - there, "in docs/gpu.md, and nowhere else"


def functions_of(node: ast.AST, lines: list[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield classes, without a text, and functions with theirs, without the docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            first = child.body[1] if ast.get_docstring(child) and len(child.body) > 1 else child.body[0]
            yield prefix + child.name, "\n".join(lines[first.lineno - 1 : child.end_lineno])
        elif isinstance(child, ast.ClassDef):
            yield prefix + child.name, ""
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from functions_of(child, lines, f"{prefix}{child.name}.")
