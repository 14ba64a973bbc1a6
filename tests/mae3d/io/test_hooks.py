"""mae3d/io/hooks.py: one notation, found where the page says, checked by name, its code told apart."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mae3d.io import hooks
from mae3d.model.config import MAEConfig
from pipelines.config import DataConfig


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    hooks.load.cache_clear()
    monkeypatch.delitem(sys.modules, "hk_own", raising=False)
    path = tmp_path / "hk_own.py"
    path.write_text(
        "class Made:\n    def __init__(self, a=1): self.a = a\n    def __call__(self, noise): return noise * self.a\n"
        "    def on_end(self, view, reason): pass\n"
        "def keep(noise, a=1): return noise + a\n"
        "number = 3\n"
    )
    return path


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Install a distribution that registers masks."""
    (folder / "hk_dist-1.0.dist-info").mkdir()
    (folder / "hk_dist-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hk-dist\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (folder / "hk_dist-1.0.dist-info" / "entry_points.txt").write_text(f"[mae3d.masks]\n{lines}")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a.b:c", "a.b:c"),
        (" a:b.c ( y = 1, x='é (1)' )", "a:b.c(x='é (1)', y=1)"),
        ("a:b(x=[1, -2.5, None, True])", "a:b(x=[1, -2.5, None, True])"),
        ("a:b()", "a:b"),
        ("board", "my_masks:checkerboard"),
        ("board(size=2)", "my_masks:checkerboard(size=2)"),
        ("tube", "tube"),
    ],
)
def test_a_hook_has_one_form(text: str, canonical: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch, board="my_masks:checkerboard", tube="others:tube")
    config = MAEConfig(mask_type=text)
    assert config.mask_type == canonical
    assert MAEConfig(mask_type=config.mask_type) == config
    assert list(hooks.hooks_of(config)) == ([] if canonical == "tube" else [("mask_type", "masks", canonical)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b(1)", r"data\.augment='a:b\(1\)': settings have names"),
        ("a:b(**x)", "settings have names"),
        ("a:b(x=y)", "values are numbers, texts in quotes"),
        ("a:b(x=1", r"must be module:name, or module:name\(key=value"),
        ("a:b(x=__import__('os'))", "values are numbers"),
        ("a:", "must be module:name"),
        ("s3://a:b", "must be module:name"),
        ("blur", r"augment='blur': give an augmentation of yours, module:name \(docs/hooks\.md\)"),
    ],
)
def test_what_is_no_hook_is_refused_by_its_option(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(augment=("a:b", text))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("hk_owm:keep", "masks", r"no module hk_owm, .*current folder .*did you mean hk_own\?"),
        ("hk_own:kept", "masks", r"hk_own\.py has no kept; did you mean keep"),
        ("hk_own:keep(b=1)", "masks", r"called as keep\(noise, b=\), and takes \(noise, a=1\): got an unexpected"),
        ("hk_own:keep", "windows", r"called as keep\(length, fps, num_frames, rng, clip, num_clips\), and takes"),
        ("hk_own:number", "masks", "is an int, not a function or class"),
        ("hk_own:Made", "sources", "has not all of the methods samples, frames"),
        ("hk_own:keep", "callbacks", r"called as keep\(\)"),
    ],
)
def test_a_hook_that_does_not_fit_is_refused_before_it_is_called(
    module: Path, text: str, kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hooks.load(text, kind)


def test_a_module_that_needs_another_or_fails_says_so(module: Path) -> None:
    module.write_text("import not_there_at_all\n")
    with pytest.raises(ValueError, match="its module imports not_there_at_all, which is not installed"):
        hooks.load("hk_own:keep", "masks")
    module.write_text("1 / 0\n")
    with pytest.raises(hooks.HookError, match="cannot be imported: ZeroDivisionError"):
        hooks.load("hk_own:keep", "masks")


def test_one_hook_may_stand_for_a_list_of_one() -> None:
    assert DataConfig(augment="a:b( x = 1 )").augment == ("a:b(x=1)",)  # type: ignore[arg-type]
    assert DataConfig(augment=["a:b", "c:d"]).augment == ("a:b", "c:d")  # type: ignore[arg-type]


def test_settings_reach_a_function_and_a_class(module: Path) -> None:
    assert hooks.load("hk_own:keep(a=2)", "masks")(3) == 5
    assert hooks.load("hk_own:Made(a=2)", "masks")(3) == 6
    assert hooks.load("hk_own:Made(a=4)", "callbacks").target.a == 4


def test_the_current_folder_never_hides_an_installed_module(module: Path) -> None:
    (module.parent / "json.py").write_text("raise RuntimeError\n")
    (module.parent / "yaml.py").write_text("raise RuntimeError\n")
    code = "from mae3d.io.hooks import load; print(load('hk_own:keep', 'masks')(1), load('yaml:dump', 'masks'))"
    root = str(Path(hooks.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": root}, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.startswith("2 Hook(text='yaml:dump'")


def test_code_is_told_apart_by_its_file_its_package_or_its_version(module: Path) -> None:
    codes = {hooks.code_of("hk_own:keep")}
    assert hooks.code_of("hk_own:Made(a=3)") in codes
    module.write_text(module.read_text() + "# more\n")
    codes.add(hooks.code_of("hk_own:keep"))
    package = module.parent / "hk_pack"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "inner/__init__.py", "inner/b.py"):
        (package / name).write_text("")
    codes.add(hooks.code_of("hk_pack.a:f"))
    (package / "inner" / "b.py").write_text("x = 1\n")
    codes.add(hooks.code_of("hk_pack.a:f"))
    assert len(codes) == 4
    assert hooks.code_of("yaml:dump").lower().startswith("pyyaml 6")
    with pytest.raises(ValueError, match="no module hk_none"):
        hooks.code_of("hk_none:x")


def test_only_code_that_the_user_names_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Command:
        mask: tuple[str, ...] = hooks.hooked("masks", ())
        init: str = hooks.hooked("encoders", "", known=("timm:",), loose=True)

        def __post_init__(self) -> None:
            hooks.canonical_hooks(self)

    monkeypatch.setattr(hooks, "_trusted", set())
    with pytest.raises(ValueError, match=r"names os:system, .*give --mask os:system, set MAE3D_HOOKS=os in"):
        hooks.require_trust("os:system", option="--mask os:system")
    hooks.trust_hooks(Command(("a:b",), "runs/a:b"))
    hooks.require_trust("a:c")
    with pytest.raises(ValueError, match="MAE3D_HOOKS=runs"):
        hooks.require_trust("runs:b")
    assert Command(init="timm:vit").init == "timm:vit"
    assert [text for _, _, text in hooks.hooks_of(Command(init="m:make( x = 1)"))] == ["m:make(x=1)"]
    monkeypatch.setenv("MAE3D_HOOKS", "x,runs")
    hooks.require_trust("runs:b")
