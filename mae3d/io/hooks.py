"""Code of the user's is named in a setting, found, checked and identified: `module:name(key=value)` ─► a function.

    mask_type: MaskType | str = hooked("masks", "random", known=get_args(MaskType))    # a field of a config
    canonical_hooks(self)                        # in its __post_init__: names of entry points become module:name
    hook = load("my_masks:checkerboard(size=2)", "masks")     # imported, its signature checked
    scores = hook(noise)                         # an error in it is a HookError that names it
    code_of("my_masks:checkerboard(size=2)")     # "my_masks sha256 3f2a9c01b2d4", or "my-masks 1.2.0" if installed

Standard library only, and nothing is imported before `load`: configs are read for `--help`. docs/hooks.md describes
each kind.
"""

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_HOOK = "hook"  # key of a field's metadata
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_FORM = re.compile(rf"\s*({_NAME})\s*:\s*({_NAME})\s*(\(.*\))?\s*", re.DOTALL)
_TRUSTED = "MAE3D_HOOKS"  # variable with the modules that a model file may name, separated by commas
PAGE = "docs/hooks.md"


class Kind(NamedTuple):
    """A kind of hook: its word in messages, the arguments of a call, and the methods of an object that replaces it."""

    noun: str
    arguments: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()  # all of them, or one of them if the kind has `any_method`
    any_method: bool = False
    makes: bool = False  # a class is called like a function, with the arguments

    @property
    def is_object(self) -> bool:
        """Return whether the name is called once, with its settings, and gives an object with methods."""
        return bool(self.methods)


KINDS: Mapping[str, Kind] = {
    "masks": Kind("mask", ("noise",)),
    "augmentations": Kind("augmentation", ("clip", "rng")),
    "windows": Kind("sampler of windows", ("length", "fps", "num_frames", "rng", "clip", "num_clips")),
    "encoders": Kind("encoder", ("num_frames", "img_size"), makes=True),
    "metrics": Kind("metric", ("view",)),
    "callbacks": Kind(
        "callback", methods=("on_start", "on_step", "on_checkpoint", "on_validation", "on_end"), any_method=True
    ),
    "sources": Kind("source", methods=("samples", "frames")),
    "heads": Kind("head", ("features",)),
}


class HookError(Exception):
    """An error inside the user's code; its cause has the traceback that matters."""


class HookName(NamedTuple):
    """The parts of a hook's text."""

    module: str
    name: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in sorted(self.settings.items()))
        return f"{self.module}:{self.name}" + (f"({settings})" if settings else "")


@dataclass(frozen=True)
class Hook:
    """A hook that can be called; `target` is the function, or the object that a class made."""

    text: str
    noun: str
    target: Any
    settings: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        """Call the function with its settings.

        Raises:
            HookError: it raised an error.
        """
        return self.guarded(self.target, *arguments, **self.settings)

    def guarded(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Call a function of the hook's, an error in which becomes a HookError."""
        try:
            return function(*arguments, **settings)
        except Exception as error:
            raise HookError(f"the {self.noun} {self.text} failed: {type(error).__name__}: {error}") from error

    def refuse(self, problem: str) -> ValueError:
        """Return the error for a result that is not as the page of hooks says."""
        return ValueError(f"the {self.noun} {self.text} {problem} ({PAGE})")


def hooked(kind: str, default: Any, *, known: tuple[str, ...] = (), loose: bool = False) -> Any:
    """Return a dataclass field that names a hook, or a tuple of hooks.

    Args:
        kind: one of KINDS.
        default: the field's.
        known: values that are none; one that ends with a colon is a beginning of such values.
        loose: whether anything that does not have the form of a hook is another value, as a path is.
    """
    return field(default=default, metadata={_HOOK: (kind, known, loose)})


def is_hook(value: str, *, known: tuple[str, ...] = ()) -> bool:
    """Return whether a value has the form of a hook, `module:name`, and is none of the known ones."""
    is_known = value in known or any(one.endswith(":") and value.startswith(one) for one in known)
    return not is_known and _FORM.fullmatch(value) is not None


def canonical_hooks(config: Any, prefix: str = "") -> None:
    """Write the hooks of a frozen dataclass in their one form, as its `__post_init__` does; nothing is imported.

    Raises:
        ValueError: a value is neither known nor a hook; the message names the option.
    """
    for entry in fields(config):
        if _HOOK not in entry.metadata:
            continue
        kind, known, loose = entry.metadata[_HOOK]
        value = getattr(config, entry.name)
        name = f"{prefix}{entry.name}"
        if isinstance(entry.default, tuple) and isinstance(value, str):
            value = (value,)
        if loose and not is_hook(value or "", known=known):
            continue
        if isinstance(value, str):
            object.__setattr__(config, entry.name, canonical(value, kind, option=name, known=known))
        elif value is not None:
            object.__setattr__(
                config, entry.name, tuple(canonical(text, kind, option=name, known=known) for text in value)
            )


def canonical(text: str, kind: str, *, option: str, known: tuple[str, ...] = ()) -> str:
    """Return a hook's text as module:name(settings in order), also of an entry point; a known value as it is.

    Raises:
        ValueError: there is no such value; the message names the option.
    """
    if not text or text in known or any(one.endswith(":") and text.startswith(one) for one in known):
        return text
    head, bracket, rest = text.partition("(")
    if ":" not in head:
        import importlib.metadata  # not for --help

        points = {point.name: point.value for point in importlib.metadata.entry_points(group=f"mae3d.{kind}")}
        if head.strip() not in points:
            names = [one for one in known if not one.endswith(":")] + sorted(points)
            near = f"{nearest(head, names)} Or give" if names else "give"
            forms = [
                *(f"{one}NAME" for one in known if one.endswith(":")),
                f"{_a(KINDS[kind].noun)} of yours, module:name",
            ]
            raise ValueError(f"{option}={text!r}: {near} {' or '.join(forms)} ({PAGE})")
        head = points[head.strip()]
    return str(parse(f"{head}{bracket}{rest}", option=option))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def parse(text: str, *, option: str = "hook") -> HookName:
    """Return the parts of `module:name` or `module:name(key=value, ...)`, whose values are Python's literals.

    Raises:
        ValueError: it is neither; the message names the option.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{option}={text!r} must be module:name, or module:name(key=value, ...)")
    module, name, given = match.groups()
    try:
        call = ast.parse(f"f{given or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
            raise ValueError("settings have names")
        settings = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (ValueError, SyntaxError) as error:
        why = "settings have names" if "names" in str(error) else "values are numbers, texts in quotes, True, None, []"
        raise ValueError(f"{option}={text!r}: {why}, as in {module}:{name}(ratio=0.8, kind='x')") from error
    return HookName(module, name, settings)


def nearest(name: str, known: list[str]) -> str:
    """Return `did you mean ...?` for a misspelt name, or else the list of known names."""
    close = get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def hooks_of(config: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield option, kind and text of each hook in a dataclass of dataclasses."""
    for entry in fields(config):
        value, name = getattr(config, entry.name), f"{prefix}{entry.name}"
        if _HOOK in entry.metadata:
            kind, known, _ = entry.metadata[_HOOK]
            texts = [value] if isinstance(value, str) else value or ()
            yield from ((name, kind, text) for text in texts if is_hook(text, known=known))
        elif is_dataclass(value):
            yield from hooks_of(value, f"{name}.")


_trusted: set[str] = set()


def trust(text: str) -> None:
    """Let a hook run although a model file names it, because the user has named it, too."""
    _trusted.add(parse(text).module)


def trust_hooks(config: Any) -> None:
    """Trust the hooks of a command line or recipe."""
    for _, _, text in hooks_of(config):
        trust(text)


def require_trust(text: str, *, option: str = "") -> None:
    """Raise ValueError for a hook that only a file names: what comes with weights is not run unseen.

    Args:
        text: the hook.
        option: the option that names it as well; "" if there is none.
    """
    module = parse(text).module
    if module not in _trusted and module not in os.environ.get(_TRUSTED, "").split(","):
        raise ValueError(
            f"the model names {text}, code that does not come with it: if you trust it, "
            + (f"give {option}, " if option else "")
            + f"set {_TRUSTED}={module} in the environment, or call mae3d.io.hooks.trust({text!r})"
        )


@cache
def load(text: str, kind: str) -> Hook:
    """Import a hook and check it; one object per process and text.

    Raises:
        ValueError: there is no such module or name, or it cannot be called as its kind is.
        HookError: its module raised an error.
    """
    name, rule = parse(text), KINDS[kind]
    trust(text)
    module = _imported(name.module, f"the {rule.noun} {text}")
    target: Any = module
    for part in name.name.split("."):
        if not hasattr(target, part):
            names = [one for one in vars(target) if not one.startswith("_")] if hasattr(target, "__dict__") else []
            where = getattr(module, "__file__", None) or name.module
            raise ValueError(f"the {rule.noun} {text}: {where} has no {part}; {nearest(part, names)}")
        target = getattr(target, part)
    unready = Hook(text, rule.noun, target, name.settings)
    if not callable(target):
        raise unready.refuse(f"is {_a(type(target).__name__)}, not a function or class")
    if rule.is_object:
        _check_signature(unready, target, (), name.settings)
        made = unready.guarded(target, **name.settings)
        has = [method for method in rule.methods if callable(getattr(made, method, None))]
        if not has or (len(has) < len(rule.methods) and not rule.any_method):
            word = "none" if rule.any_method else "not all"
            raise unready.refuse(f"has {word} of the methods {', '.join(rule.methods)}")
        return Hook(text, rule.noun, made, {})
    if inspect.isclass(target) and not rule.makes:
        _check_signature(unready, target, (), name.settings)
        target, settings = unready.guarded(target, **name.settings), {}
        if not callable(target):
            raise unready.refuse(f"is a class without __call__({', '.join(rule.arguments)})")
    else:
        settings = name.settings
    _check_signature(unready, target, rule.arguments, settings)
    return Hook(text, rule.noun, target, settings)


def _check_signature(hook: Hook, target: Any, arguments: tuple[str, ...], settings: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # of C; the call will show it
        return
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        given = ", ".join([*arguments, *(f"{key}=" for key in settings)])
        shown = getattr(target, "__name__", type(target).__name__)
        raise hook.refuse(f"is called as {shown}({given}), and takes {signature}: {error}") from error


def _imported(module: str, what: str) -> Any:
    """Import a module of the installed ones, or of the current folder; the latter never hides the former."""
    look_here()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"{what}: its module imports {error.name}, which is not installed") from error
        here = sorted(path.stem for path in Path.cwd().glob("*.py"))
        near = get_close_matches(module, here, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{what}: there is no module {error.name}, neither among the installed ones, nor on PYTHONPATH, nor in the "
            f"current folder {Path.cwd()}{hint}"
        ) from error
    except Exception as error:
        raise HookError(f"{what}: its module cannot be imported: {type(error).__name__}: {error}") from error


def look_here() -> None:
    """Let modules of the current folder be imported, after all others."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # a module may have been written a moment ago


def code_of(text: str) -> str:
    """Return what distinguishes the code of a hook from a changed one: its distribution's version, or a hash.

    The hash is over the module's file, or, if it is part of a package, over all Python files of the package. Other
    modules that it imports are not looked at.

    Raises:
        ValueError: there is no such module.
    """
    import importlib.metadata
    import importlib.util

    module = parse(text).module
    look_here()
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand, as __main__
        spec = None
    if spec is None:
        _imported(module, f"the hook {text}")  # raises, unless it is such a one
        return f"{module}, no file"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    if not folders:
        if not spec.has_location or spec.origin is None:
            return f"{module}, built into Python {sys.version.partition(' ')[0]}"
        files = [Path(spec.origin)]
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    if files and any(files[0].is_relative_to(folder) for folder in installed):
        names = importlib.metadata.packages_distributions().get(top, [])
        if names:
            return f"{names[0]} {importlib.metadata.version(names[0])}"
    digest = hashlib.sha256()
    for path in files:
        relative = next((path.relative_to(one) for one in folders if path.is_relative_to(one)), path.name)
        digest.update(f"{relative}\0".encode() + path.read_bytes())
    return f"{top} sha256 {digest.hexdigest()[:12]}"


def codes_of(config: Any) -> dict[str, str]:
    """Return `code_of` for each hook of a config, by the hook's text."""
    return {text: code_of(text) for _, _, text in hooks_of(config)}
