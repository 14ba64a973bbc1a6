"""A model is described for those whom it is given to: config.json for programs, a model card for people.

model, clips ─► facts ─► config.json, README.md

    facts = describe(model, Clip(sampling_rate=4, target_fps=30), licence="MIT")
    write_card(facts, folder)
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae3d import __version__
from mae3d.io.shapes import plain_size, sides, size_text
from mae3d.model.config import PRESETS

if TYPE_CHECKING:
    from mae3d.model.classifier import Classifier
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder
    from mae3d.model.mae import MAE

CARD, README, PICTURE = "config.json", "README.md", "preview.png"
OWN = "mae3d"
# Classes of the file of code in a folder of the format `encoder`, by which transformers finds them.
_AUTO_MAP = {"AutoConfig": "modeling_mae3d.MAE3DConfig", "AutoModel": "modeling_mae3d.MAE3DModel"}

# Licences by the ids of the Hugging Face Hub, which are SPDX's in small letters.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
    *("mpl-2.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-4.0", "openrail"),
)


@dataclass(frozen=True)
class Clip:
    """How far apart a clip's frames are."""

    sampling_rate: float = 4
    target_fps: float = 30


def describe(
    model: "MAE | Classifier | Encoder | FrameEncoder",
    clip: Clip,
    *,
    format: str = OWN,
    file: str = "model.safetensors",
    licence: str = "",
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of config.json, with the complete settings of the model under `model`.

    Args:
        model: The model that is given away.
        clip: Of the training.
        format: The format of the weights.
        file: Name of the file that holds them.
        licence: What the card says of it.
        training: Group ─► setting ─► value.
    """
    from mae3d.model.encoder import Encoder
    from mae3d.weights.convert import encoder_of

    config = encoder_of(model.config) if isinstance(model, Encoder) else model.config
    of_transformers = {"model_type": OWN, "architectures": ["MAE3DModel"], "auto_map": _AUTO_MAP}
    sizes = ((name, value) for name, value in PRESETS[config.preset].items() if "decoder" not in name)
    return {
        **(of_transformers if format == "encoder" else {}),
        "kind": type(model).__name__,
        "made_by": f"mae3d {__version__}",
        "preset": config.preset if all(getattr(config, name) == value for name, value in sizes) else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": config.img_size,
        "frames": config.num_frames,
        **asdict(clip),
        "mean": config.mean,
        "std": config.std,
        **{name: value for name in ("mask_ratio", "num_classes") if (value := getattr(config, name, None)) is not None},
        "model": asdict(config),
        "format": format,
        "file": file,
        "licence": licence,
        "training": dict(training or {}),
    }


def write_card(facts: Mapping[str, Any], folder: Path) -> None:
    """Write README.md, which shows preview.png if that is there, and config.json if no other program's is there."""
    from mae3d.io.files import write_text

    if not (folder / CARD).exists():
        write_text(folder / CARD, json.dumps(facts, indent=1) + "\n")
    write_text(folder / README, card(facts, picture=(folder / PICTURE).is_file()))


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what `describe` has returned for the model in a folder; {} if there is no description of ours."""
    try:
        described = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    described = described.get(OWN, described) if isinstance(described, dict) else {}
    return described if isinstance(described, dict) and "made_by" in described else {}


def card(facts: Mapping[str, Any], *, picture: bool = False) -> str:
    """Return the model card, Markdown with the Hub's front matter, from the content of config.json."""
    config, training = facts["model"], facts["training"]
    kinds = {"Classifier": f"a classifier of {config.get('num_classes')} classes", "MAE": "a masked autoencoder"}
    lines = [
        *_front_matter(facts),
        f"# {facts['preset'] or _name_of(config)}: {kinds.get(facts['kind'], 'an encoder')} for video",
        "",
        f"{facts['parameters'] / 1e6:.1f} M parameters, made with {facts['made_by']}. It takes {facts['frames']} "
        f"frames of {size_text(plain_size(config['img_size']))} pixels{_channels(config)}, one every "
        f"{facts['sampling_rate']:g} frames at {facts['target_fps']:g} frames/s; pixels on [0, 1] are normalised by "
        f"mean {facts['mean']} and deviation {facts['std']}, which the model does itself when it is given uint8.",
    ]
    if facts["kind"] == "MAE":
        target = "pixels, each patch normalised" if config["norm_pix_loss"] else "pixels"
        lines += ["", f"Pretrained to predict {target}, with {config['mask_ratio']:.0%} of the tokens hidden."]
    if picture:
        alt = "Frames of a clip: the original, what the encoder sees, and what the model fills in"
        lines += ["", f"![{alt}]({PICTURE})"]
    lines += ["", "## Use", "", "```python", *_usage(facts), "```", ""]
    if facts["format"] != OWN and facts["format"] not in _USES:
        lines += [f"`{facts['file']}` has the names and shapes of the format {facts['format']}.", ""]
    if facts["format"] == "encoder":
        opened = '`transformers.AutoModel.from_pretrained("THIS FOLDER", trust_remote_code=True)`'
        lines += [f"{opened} opens it, too, after a look at the two files of code.", ""]
    if training.get("data", {}).get("sampling") == "segments":
        lines += ["Trained on runs of consecutive frames (segments below), which `read_clip` does not make.", ""]
    if training:
        lines += ["## Training", "", "| setting | value |", "|---|---|"]
        lines += [
            f"| {group}.{name} | {value} |" for group, values in training.items() for name, value in values.items()
        ]
        lines.append("")
    if facts["licence"]:
        lines += ["## Licence", "", facts["licence"], ""]
    return "\n".join(lines)


def _front_matter(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines by which the Hub sorts models."""
    library = {"transformers": "transformers", "onnx": "onnx"}.get(facts["format"], OWN)
    task = "video-classification" if facts["kind"] == "Classifier" else "feature-extraction"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}"]
    text = re.sub(r"[\s_]+", "-", facts["licence"].lower())
    if licence := next((name for name in _LICENCES if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text)), ""):
        lines.append(f"license: {licence}")
    return [*lines, "tags:", *(f"- {tag}" for tag in ("mae3d", "video", "masked-autoencoder", "vit")), "---", ""]


def _channels(config: Mapping[str, Any]) -> str:
    channels = config.get("in_chans", 3)
    return "" if channels == 3 else f" of {channels} channel{'s' * (channels > 1)}"


def _name_of(config: Mapping[str, Any]) -> str:
    """Return a name for sizes that no preset has."""
    return f"vit_{config['embed_dim']}x{config['depth']}_patch{config['patch_size']}"


def _usage(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of Python that turn a clip into an answer."""
    if facts["format"] in _USES:
        return _USES[facts["format"]](facts)
    load = "load_classifier" if facts["kind"] == "Classifier" else "load_model"
    stride = f"sampling_rate={facts['sampling_rate']:g}, target_fps={facts['target_fps']:g}"
    embed = f"vector = mae3d.embed(model, clip)  # (1, {facts['model']['embed_dim']})"
    return [
        "import mae3d",
        "",
        f'model = mae3d.{load}("THIS FOLDER").requires_grad_(False)',
        f'clip = mae3d.read_clip("video.mp4", model.config, {stride})',
        "logits = model(clip)" if facts["kind"] == "Classifier" else embed,
    ]


def _random_clip(facts: Mapping[str, Any]) -> str:
    """Return an expression for a clip in the layout that our models take, which stands for real frames."""
    config = facts["model"]
    shape = (1, facts["frames"], *sides(plain_size(config["img_size"])), config.get("in_chans", 3))
    return f"np.random.randint(0, 256, {shape}, dtype=np.uint8)  # clips, frames, height, width, colours"


def _with_transformers(facts: Mapping[str, Any]) -> list[str]:
    is_classifier = facts["kind"] == "Classifier"
    name = "VideoMAEForVideoClassification" if is_classifier else "VideoMAEModel"
    result = "logits = model(**clip).logits" if is_classifier else "tokens = model(**clip).last_hidden_state"
    return [
        "import numpy as np",
        f"from transformers import {name}, VideoMAEImageProcessor",
        "",
        f'model = {name}.from_pretrained("THIS FOLDER")',
        f"frames = {_random_clip(facts)}",
        'clip = VideoMAEImageProcessor.from_pretrained("THIS FOLDER")(list(frames[0]), return_tensors="pt")',
        result,
    ]


def _with_onnx(facts: Mapping[str, Any]) -> list[str]:
    outputs = "(logits,)" if facts["kind"] == "Classifier" else "tokens, vector"
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("THIS FOLDER/{facts["file"]}")',
        f"clip = {_random_clip(facts)}",
        f'{outputs} = session.run(None, {{"clip": clip}})',
    ]


def _with_torch_export(facts: Mapping[str, Any]) -> list[str]:
    outputs = "logits" if facts["kind"] == "Classifier" else "tokens, vector"
    return [
        "import numpy as np",
        "import torch",
        "",
        f'model = torch.export.load("THIS FOLDER/{facts["file"]}").module()',
        f"clip = {_random_clip(facts)}",
        f"{outputs} = model(torch.from_numpy(clip))",
    ]


def _with_torch(facts: Mapping[str, Any]) -> list[str]:
    outputs = "logits" if facts["kind"] == "Classifier" else "tokens, vector"
    return [
        "import sys",
        "",
        "import numpy as np",
        "import torch",
        "",
        'sys.path.insert(0, "THIS FOLDER")',
        "import encoder",
        "",
        'model = encoder.load("THIS FOLDER")',
        f"clip = {_random_clip(facts)}",
        f"{outputs} = model(torch.from_numpy(clip))",
    ]


# Formats that other programs open by code of their own: the lines that do so.
_USES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "transformers": _with_transformers,
    "onnx": _with_onnx,
    "torch_export": _with_torch_export,
    "encoder": _with_torch,
}
