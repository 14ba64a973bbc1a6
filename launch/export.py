"""A run ─► a folder to give away: weights, config.json and a model card, without a word of the data's names or paths.

mae3d export RUN OUT                          # mae3d.load_model("OUT") opens it
mae3d export RUN OUT --format mae_st          # for users of facebookresearch/mae_st
mae3d export foreign.pth OUT                  # a foreign checkpoint as ours
mae3d export RUN OUT --format onnx            # or torch_export, transformers, encoder: for other programs
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_IO, examples_of, fail
from launch.common.clip_options import read_card, run_of, stored_config
from launch.common.sole_writer import sole_writer
from mae3d.io.bounds import Bounds, check_number
from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_help
from mae3d.weights.card import OWN, README, Clip, describe, write_card
from pipelines.config import RATE

if TYPE_CHECKING:
    from mae3d.model.classifier import Classifier
    from mae3d.model.mae import MAE
    from mae3d.weights.graphs import Model

FOREIGN = ("mae_st", "m3d", "pyslowfast")  # whole models in other projects' names
# Formats of encoders and classifiers that other programs open, and their files of weights.
OPEN = {
    "transformers": "model.safetensors",
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
    "encoder": "model.safetensors",
}
FORMATS = (OWN, *FOREIGN, *OPEN)

# notes on the licence that weights inherit
SCRATCH = "trained from scratch: there is no licence to inherit"
UNKNOWN = "started from weights whose licence is not recorded here: look it up before you share these"
_START = "started from weights in the names of {}, a project under CC BY-NC 4.0: look up theirs before you share these"
INHERITED = {
    "mae_st": _START.format("mae_st"),
    "m3d": _START.format("cyrilzakka/MAE3D"),
    "pyslowfast": _START.format("PySlowFast, as the official ones of mae_st have them"),
    "videomae": _START.format("VideoMAE"),
    "vjepa": _START.format("V-JEPA"),
    "vjepa2": _START.format("V-JEPA 2"),
    "vjepa2_1": _START.format("V-JEPA 2.1"),
}

# Settings of the training that a card may show, named one by one: others may hold a path or a name.
SHOWN = {
    "data": ("sampling", "sampling_rate", "target_fps", "num_segments", "frames_per_segment", "repeat_aug", "windows",
             "area", "aspect", "flip", "short_side", "rand_augment", "colour_jitter", "erase"),
    "optim": ("lr", "blr", "min_lr", "warmup_epochs", "warmup_steps", "betas", "weight_decay", "clip_grad",
              "layer_decay"),
    "mix": ("mixup", "cutmix", "prob", "switch_prob", "smoothing"),
    "train": ("global_batch", "steps", "epochs", "precision", "seed"),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="mae3d export", allow_abbrev=False, add_help=False)
    doc = str(__doc__)
    add_help(parser, examples=examples_of(doc)[:4], description=doc.partition("\n\n")[0])
    parser.add_argument(
        "run",
        help="a run (its best checkpoint, else the latest), a checkpoint's folder, a model file, a foreign checkpoint",
    )
    parser.add_argument("out", help="the folder to be made; it must not hold anything yet")
    parser.add_argument("--format", choices=FORMATS, default=OWN, help="whose names the weights get (default: ours)")
    parser.add_argument("--licence", default="", help="what the card says of it; default: what is known of the weights")
    parser.add_argument("--sampling_rate", type=float, help="distance of two frames at target_fps; default: the run's")
    parser.add_argument("--target_fps", type=float, help="default: the run's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    tolerate_any_text()
    options = parser().parse_args(argv)
    clip = {name: value for name in ("sampling_rate", "target_fps") if (value := getattr(options, name)) is not None}
    folder = Path(options.out).absolute()
    try:
        for name, value in clip.items():
            check_number(f"--{name}", value, Bounds(**RATE))
        with sole_writer(folder.parent, job="export", what=folder.name):
            out = export(options.run, options.out, format=options.format, licence=options.licence, clip=clip)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or options.out}: {error.strerror}" if error.strerror else str(error), EXIT_IO)
    print(f"exported: {out}")
    return 0


def export(
    run: str | Path, out: str | Path, *, format: str = OWN, licence: str = "", clip: Mapping[str, float] | None = None
) -> Path:
    """Write the folder, whole or not at all.

    Args:
        run: Anything that `mae3d.load_model` or `load_classifier` opens.
        out: The folder to be made.
        format: One of FORMATS.
        licence: What the card says; "" for what is known of the weights.
        clip: sampling_rate and target_fps, where they are not the run's.

    Returns:
        `out`.

    Raises:
        ValueError: `out` holds something, there is no model, or the format cannot hold it.
        OSError: The folder cannot be written.
    """
    from mae3d.io.resources import require_disk
    from mae3d.weights.files import FOREIGN_FILE, MODEL_FILE, find_model_file
    from mae3d.weights.graphs import subject_of

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already: remove it, or name another folder")
    file = find_model_file(run)
    model, settings = _open(file, format), stored_config(run_of(file))
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    require_disk(out, size, f"the weights of {file}", "give another folder")
    before = read_card(file.parent)
    facts = describe(
        subject_of(model) if format in OPEN else model,
        Clip(**(_clip_of(settings, before) | dict(clip or {}))),
        format=format,
        file=OPEN.get(format, MODEL_FILE if format == OWN else FOREIGN_FILE),
        licence=licence or before.get("licence") or _inherited(file, settings),
        training=_training(settings, file) or before.get("training") or {},
    )
    with _made_aside(out) as folder:
        _save(model, folder, facts)
        write_card(facts, folder)
        for path in folder.iterdir():  # safetensors' files are for their owner alone
            path.chmod((folder / README).stat().st_mode)
    return out


def _open(file: Path, format: str) -> "Model":
    """Open the model; for a format that holds encoders also one whose decoder is missing or not ours."""
    from mae3d.weights.files import WeightsError, open_encoder, open_model

    if format not in OPEN:
        return open_model(file)
    try:
        return open_model(file)
    except WeightsError:
        return open_encoder(file)


def _save(model: "Model", folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the model's files in the format that the facts name; ConvertError if it cannot hold the model."""
    from mae3d.model.mae import MAE
    from mae3d.weights import graphs
    from mae3d.weights.convert import classifier_to_foreign, to_foreign
    from mae3d.weights.files import save_model
    from mae3d.weights.videomae import save_videomae

    format, path = facts["format"], folder / facts["file"]
    if format == "transformers":
        save_videomae(model, folder, facts, file=facts["file"])
    elif format in OPEN:
        {"onnx": graphs.save_onnx, "torch_export": graphs.save_program, "encoder": graphs.save_bare}[format](
            model, path
        )
    else:
        whole: Any = model  # `_open` opens nothing else for these formats
        if format == OWN:
            save_model(whole, path)
        else:
            convert: Any = to_foreign if isinstance(model, MAE) else classifier_to_foreign
            _save_foreign(convert(whole.state_dict(), whole.config, format=format), whole, path)


def _save_foreign(state: Mapping[str, Any], model: "MAE | Classifier", path: Path) -> None:
    """Save tensors and plain values in the layout of upstream's loaders, which weights_only opens."""
    import torch

    from mae3d.io.files import replace_file

    config = asdict(model.config)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    key = "model_state" if any(name.startswith("pred_head.") for name in state) else "model"
    content = {key: {name: tensor.contiguous().clone() for name, tensor in state.items()}, "epoch": 0, "args": plain}
    try:
        with replace_file(path) as aside, aside.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # of torch's archive, which it cannot end after an error of the system
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


@contextmanager
def _made_aside(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which is renamed to it when complete, or removed."""
    from mae3d.io.files import sync

    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    aside = beside / out.name  # made by mkdir, it has the permissions that the user's mask gives
    aside.mkdir()
    try:
        yield aside
        sync(aside)
        aside.replace(out)
        sync(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _clip_of(settings: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    data = settings.get("data") or before
    return {name: data[name] for name in ("sampling_rate", "target_fps") if data.get(name)}


def _training(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return group ─► setting ─► value of the settings that a card may show."""
    shown = {
        group: {name: settings[group][name] for name in names if settings[group].get(name) not in (None, "")}
        for group, names in SHOWN.items()
        if settings.get(group)
    }
    if shown.get("data", {}).get("sampling") == "strided":
        shown["data"] = {name: value for name, value in shown["data"].items() if "segment" not in name}
    if shown and file.parent.name.startswith("step-"):
        shown["train"] = shown.get("train", {}) | {"steps_done": int(file.parent.name.removeprefix("step-"))}
    return shown


def _inherited(file: Path, settings: Mapping[str, Any]) -> str:
    """Return a note on the licence of the weights that a run started from, or of a foreign file."""
    from mae3d.weights.convert import recognise
    from mae3d.weights.files import WeightsError, find_model_file, read_tensors
    from mae3d.weights.hub import cached_folder, hub_model
    from mae3d.weights.names import plain_names
    from mae3d.weights.wrappers import unwrapped

    if settings and not settings.get("init"):
        return SCRATCH
    start = str(settings.get("init") or file)
    try:
        if model := hub_model(start):  # its card was fetched with it; nothing is fetched for a note
            return str(read_card(cached_folder(model) or Path()).get("licence") or UNKNOWN)
        origin = find_model_file(start)
        if licence := read_card(origin.parent).get("licence"):
            return str(licence)
        if origin != file and (earlier := stored_config(run_of(origin))):
            return _inherited(origin, earlier)  # a run that started from another run, and so on to the first
        return INHERITED[recognise(plain_names(unwrapped(read_tensors(origin))))]
    except (WeightsError, ValueError, OSError):
        return UNKNOWN


if __name__ == "__main__":
    raise SystemExit(main())
