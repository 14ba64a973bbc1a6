"""A model is given away with its computation: as ONNX, as a program of torch.export, or beside a file of Python.

encoder ─► clip ─► tokens, vector;  classifier ─► clip ─► logits

    save_onnx(model, folder / "model.onnx")
    save_program(model, folder / "model.pt2")           # torch.export.load opens it where MAE3D is not installed
    save_bare(model, folder / "model.safetensors")      # with encoder.py, a copy of bare_encoder.py

The input `clip` is uint8 (B, T, H, W, C), as our models take it: pixels are normalised inside. Outputs of an encoder
are `tokens` (B, L, D) after the last norm, without the class token, and `vector` (B, D), which `mae3d.embed` returns.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from mae3d.io.files import write_text
from mae3d.model.classifier import Classifier
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE
from mae3d.weights import bare_encoder
from mae3d.weights.formats import ConvertError
from mae3d.weights.tensors import save_tensors
from mae3d.weights.videomae import unusual_settings

Model = MAE | Classifier | Encoder | FrameEncoder
_ONE_FILE = 1 << 30  # bytes of weights that ONNX keeps in its file, which ends at 2 GB; more lie beside it

# The file by which transformers opens a folder of the format `encoder`.
MODELING = "modeling_mae3d.py"
_MODELING = '''"""transformers.AutoModel opens this folder with trust_remote_code=True; encoder.py has the model."""

from transformers import PretrainedConfig, PreTrainedModel

from .encoder import Model


class MAE3DConfig(PretrainedConfig):
    """The content of config.json; `model` has the sizes."""

    model_type = "mae3d"

    def __init__(self, model=None, **others):
        super().__init__(**others)
        self.model = model or {}


class MAE3DModel(PreTrainedModel):
    """An encoder: clip to tokens and vector; or a classifier: clip to logits."""

    config_class = MAE3DConfig
    main_input_name = "clip"

    def __init__(self, config):
        super().__init__(config)
        self.encoder = Model(config.model, num_classes=config.model.get("num_classes", 0))
        self.post_init()

    def forward(self, clip):
        return self.encoder(clip)
'''


class _Features(nn.Module):
    """The outputs of an encoder that other programs use."""

    def __init__(self, encoder: Encoder | FrameEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.encoder
        if isinstance(encoder, FrameEncoder):
            tokens = encoder.features(clip, blocks=encoder.config.depth, pool="tokens")
            return tokens, encoder.features(clip, blocks=encoder.config.depth, pool="mean")
        x_BLD = encoder(clip)[:, encoder.num_prefix :]
        return encoder.norm(x_BLD), encoder.norm(x_BLD.mean(dim=1))


def save_onnx(model: Model, path: Path) -> None:
    """Write an ONNX model whose first axis is free; onnx and onnxscript are needed.

    Raises:
        ConvertError: A package is missing, or the model cannot be translated.
        OSError: The disk is full, or read-only.
    """
    module = _module_of(model)
    names = ["logits"] if isinstance(model, Classifier) else ["tokens", "vector"]
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    with _named("onnx"):
        torch.onnx.export(
            _program(module, _example(model)),
            (),
            path,
            input_names=["clip"],
            output_names=names,
            dynamo=True,
            external_data=size > _ONE_FILE,
            verbose=False,
        )


def save_program(model: Model, path: Path) -> None:
    """Write a program of torch.export whose first axis is free.

    Raises:
        ConvertError: The model cannot be translated.
        OSError: The disk is full, or read-only.
    """
    with _named("torch_export"):
        torch.export.save(_program(_module_of(model), _example(model)), path)


def _program(module: nn.Module, clip: Tensor) -> torch.export.ExportedProgram:
    """Trace a module for any number of clips; a number that became a constant is an error of torch's."""
    return torch.export.export(module, (clip,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _module_of(model: Model) -> nn.Module:
    subject = subject_of(model)
    return (subject if isinstance(subject, Classifier) else _Features(subject)).eval()


def subject_of(model: Model) -> Classifier | Encoder | FrameEncoder:
    """Return the part that these formats hold: an autoencoder's encoder, or the model itself."""
    return model.encoder if isinstance(model, MAE) else model


def save_bare(model: Model, path: Path) -> None:
    """Write the tensors of an encoder or a classifier, and the code that opens them by torch alone, or transformers.

    Raises:
        ConvertError: The encoder is another than ours.
        OSError: The disk is full, or read-only.
    """
    subject = subject_of(model)
    encoder = subject.encoder if isinstance(subject, Classifier) else subject
    if isinstance(encoder, FrameEncoder):
        raise ConvertError(f"the format encoder cannot hold an image ViT, timm:{encoder.config.backbone}")
    if unknown := unusual_settings(encoder.config):
        raise ConvertError(f"the format encoder cannot hold {', '.join(unknown)}; onnx and torch_export do")
    state = {f"encoder.{name.removeprefix('encoder.')}": tensor for name, tensor in subject.state_dict().items()}
    if encoder.config.pos_init == "fixed":  # a table that no state dict has
        state["encoder.positions.joint"] = encoder.positions.joint
    save_tensors(state, path, metadata={"format": "pt"})
    write_text(path.with_name(MODELING), _MODELING)
    write_text(path.with_name("encoder.py"), Path(bare_encoder.__file__).read_text(encoding="utf-8"))


def _example(model: Model) -> Tensor:
    config = model.config
    height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
    shape = (2, config.num_frames, height, width, getattr(config, "in_chans", 3))
    return torch.zeros(shape, dtype=torch.uint8)


@contextmanager
def _named(format: str) -> Iterator[None]:
    """Raise an error of torch's exporter as a ConvertError; its warnings are of its own insides."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except ImportError as error:
        raise ConvertError(f"the format {format} needs {error.name}: pip install 'mae3d[onnx]'") from error
    except Exception as error:  # torch has many classes for what it cannot trace
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConvertError(f"the format {format} cannot hold this model: torch says {line}") from error
