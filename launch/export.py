"""A run ─► a folder to give away: weights, config.json and a model card, without a word of the data's names or paths.

python launch/export.py RUN OUT                          # mae3d.load_model("OUT") opens it
python launch/export.py RUN OUT --format mae_st          # for users of facebookresearch/mae_st
python launch/export.py foreign.pth OUT                  # a foreign checkpoint as ours
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_IO, fail
from launch.common.clip_options import read_card, run_of, stored_config
from launch.common.sole_writer import sole_writer
from mae3d.io.bounds import Bounds, check_number
from mae3d.io.console import tolerate_any_text
from mae3d.io.shapes import plain_size, size_text
from pipelines.config import RATE

if TYPE_CHECKING:
    from mae3d.model.classifier import Classifier
    from mae3d.model.mae import MAE

OWN = "mae3d"
FORMATS = (OWN, "mae_st", "m3d", "pyslowfast")
README = "README.md"

# notes on the licence that weights inherit
SCRATCH = "trained from scratch: there is no licence to inherit"
UNKNOWN = "started from weights whose licence is not recorded here: look it up before you share these"
_START = "started from weights in the names of {}, a project under CC BY-NC 4.0: look up theirs before you share these"
INHERITED = {
    "mae_st": _START.format("mae_st"),
    "m3d": _START.format("cyrilzakka/MAE3D"),
    "pyslowfast": _START.format("PySlowFast, as the official ones of mae_st have them"),
    "videomae": _START.format("VideoMAE"),
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


@dataclass(frozen=True)
class Clip:
    """How far apart a clip's frames are."""

    sampling_rate: float = 4
    target_fps: float = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    tolerate_any_text()
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "run",
        help="a run (its best checkpoint, else the latest), a checkpoint's folder, a model file, a foreign checkpoint",
    )
    parser.add_argument("out", help="the folder to be made; it must not hold anything yet")
    parser.add_argument("--format", choices=FORMATS, default=OWN, help="whose names the weights get (default: ours)")
    parser.add_argument("--licence", default="", help="what the card says of it; default: what is known of the weights")
    parser.add_argument("--sampling_rate", type=float, help="distance of two frames at target_fps; default: the run's")
    parser.add_argument("--target_fps", type=float, help="default: the run's")
    options = parser.parse_args(argv)
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
        fail(f"{error.filename or options.out}: {error.strerror or error}", EXIT_IO)
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
    from mae3d.io.files import write_text
    from mae3d.io.resources import require_disk
    from mae3d.model.mae import MAE
    from mae3d.weights.convert import classifier_to_foreign, to_foreign
    from mae3d.weights.files import CARD, FOREIGN_FILE, MODEL_FILE, find_model_file, open_model, save_model

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something already: remove it, or name another folder")
    file = find_model_file(run)
    model, settings = open_model(file), stored_config(run_of(file))
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    require_disk(out, size, f"the weights of {file}", "give another folder")
    before = read_card(file.parent)
    facts: dict[str, Any] = {
        **_facts(model, Clip(**(_clip_of(settings, before) | dict(clip or {})))),
        "format": format,
        "file": MODEL_FILE if format == OWN else FOREIGN_FILE,
        "licence": licence or before.get("licence") or _inherited(file, settings),
        "training": _training(settings, file) or before.get("training") or {},
    }
    with _made_aside(out) as folder:
        if format == OWN:
            save_model(model, folder / MODEL_FILE)
        elif isinstance(model, MAE):
            _save_foreign(to_foreign(model.state_dict(), model.config, format=format), model, folder / FOREIGN_FILE)
        else:
            state = classifier_to_foreign(model.state_dict(), model.config, format=format)
            _save_foreign(state, model, folder / FOREIGN_FILE)
        write_text(folder / CARD, json.dumps(facts, indent=1) + "\n")
        write_text(folder / README, card(facts))
        for path in folder.iterdir():  # safetensors' files are for their owner alone
            path.chmod((folder / README).stat().st_mode)
    return out


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


def _facts(model: "MAE | Classifier", clip: Clip) -> dict[str, Any]:
    """Return the first entries of config.json, and the complete config under `model`."""
    import mae3d
    from mae3d.model.config import PRESETS

    config = model.config
    sizes = ((name, value) for name, value in PRESETS[config.preset].items() if "decoder" not in name)
    return {
        "kind": type(model).__name__,
        "made_by": f"mae3d {mae3d.__version__}",
        "preset": config.preset if all(getattr(config, name) == value for name, value in sizes) else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": config.img_size,
        "frames": config.num_frames,
        **asdict(clip),
        "mean": config.mean,
        "std": config.std,
        **{name: value for name in ("mask_ratio", "num_classes") if (value := getattr(config, name, None)) is not None},
        "model": asdict(config),
    }


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
    from mae3d.weights.wrappers import unwrapped

    if settings and not settings.get("init"):
        return SCRATCH
    start = str(settings.get("init") or file)
    try:
        origin = find_model_file(start)
        if licence := read_card(origin.parent).get("licence"):
            return str(licence)
        if origin != file and (earlier := stored_config(run_of(origin))):
            return _inherited(origin, earlier)  # a run that started from another run, and so on to the first
        return INHERITED[recognise(unwrapped(read_tensors(origin)))]
    except (WeightsError, ValueError, OSError):
        return UNKNOWN


def _channels(config: Mapping[str, Any]) -> str:
    channels = config.get("in_chans", 3)
    return "" if channels == 3 else f" of {channels} channel{'s' * (channels > 1)}"


def card(facts: Mapping[str, Any]) -> str:
    """Return the model card, Markdown, from the content of config.json."""
    config, training = facts["model"], facts["training"]
    is_classifier = facts["kind"] == "Classifier"
    what = f"a classifier of {config['num_classes']} classes" if is_classifier else "a masked autoencoder"
    lines = [
        f"# {facts['preset'] or _name_of(config)}: {what} for video",
        "",
        f"{facts['parameters'] / 1e6:.1f} M parameters, made with {facts['made_by']}. It takes {facts['frames']} "
        f"frames of {size_text(plain_size(facts['size']))} pixels{_channels(config)}, one every "
        f"{facts['sampling_rate']:g} frames at {facts['target_fps']:g} frames/s; pixels on [0, 1] are normalised by "
        f"mean {facts['mean']} and deviation {facts['std']}, which the model does itself when it is given uint8.",
    ]
    if not is_classifier:
        target = "pixels, each patch normalised" if config["norm_pix_loss"] else "pixels"
        lines += ["", f"Pretrained to predict {target}, with {config['mask_ratio']:.0%} of the tokens hidden."]
    lines += ["", "## Use", "", "```python", *_usage(facts), "```", ""]
    if facts["format"] != OWN:
        lines += [f"`{facts['file']}` has the names and shapes of the format {facts['format']}.", ""]
    if training.get("data", {}).get("sampling") == "segments":
        lines += ["Trained on runs of consecutive frames (segments below), which `read_clip` does not make.", ""]
    if training:
        lines += ["## Training", "", "| setting | value |", "|---|---|"]
        lines += [
            f"| {group}.{name} | {value} |" for group, values in training.items() for name, value in values.items()
        ]
        lines.append("")
    lines += ["## Licence", "", facts["licence"], ""]
    return "\n".join(lines)


def _name_of(config: Mapping[str, Any]) -> str:
    """Return a name for sizes that no preset has."""
    return f"vit_{config['embed_dim']}x{config['depth']}_patch{config['patch_size']}"


def _usage(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of Python that turn a video into an answer."""
    load = "load_classifier" if facts["kind"] == "Classifier" else "load_model"
    stride = f"sampling_rate={facts['sampling_rate']:g}, target_fps={facts['target_fps']:g}"
    embed = "vector = model.encoder.norm(model.encoder(clip)[:, model.encoder.num_prefix :].mean(dim=1))"
    return [
        "import mae3d",
        "",
        f'model = mae3d.{load}("THIS FOLDER").requires_grad_(False)',
        f'clip = mae3d.read_clip("video.mp4", model.config, {stride})',
        "logits = model(clip)" if facts["kind"] == "Classifier" else f"{embed}  # (1, {facts['model']['embed_dim']})",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
