"""`--run`, or `--encoder` of timm, and its options ─► the one frozen encoder, its identity, and its sampling of clips.

frozen = open_frozen(config, world)          # config: a dataclass that extends EncoderChoice
embedder = Embedder(frozen.encoder, world.device)
samples = open_samples(config.data, frozen.trained, frozen.encoder.config, world)
embed_samples(path, embedder, samples, model_sha256=frozen.identity, world=world)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.common.clip_options import agreed_model_file, agreed_model_hash, trained_data
from mae3d.io.bounds import bounded, check_bounds
from mae3d.io.hooks import canonical_hooks, code_of, hooked, is_hook

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.io.shapes import Size
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder

TIMM = "timm:"


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """The frozen model of a command: one of ours, or an image ViT.

    Attributes:
        run: A run, a checkpoint's folder, a model file, a foreign checkpoint or hf://ORG/NAME.
        encoder: Instead of a run, an image ViT by timm's name, `timm:vit_small_patch14_dinov2`: it sees each frame of a
            clip alone, and their features are averaged. Or an encoder of yours, `module:name` (docs/hooks.md).
        encoder_weights: Its weights: a file with timm's names or their authors' (.safetensors, .pth, .bin); `download`,
            by timm from the Hugging Face Hub; or `none`, random ones.
        encoder_frames: Frames of its clips.
        encoder_size: Side of its square frames in pixels, or height and width: multiples of its patch; null is the
            model's own.
    """

    run: str = ""
    encoder: str = hooked("encoders", "", known=(TIMM,))
    encoder_weights: str = ""
    encoder_frames: int = bounded(16, least=1, most=1 << 16)
    encoder_size: int | tuple[int, int] | None = bounded(None, least=1, most=1 << 16)

    def __post_init__(self) -> None:
        check_bounds(self)
        canonical_hooks(self)
        if bool(self.run.strip()) == bool(self.encoder.strip()):
            raise ValueError("give either --run RUN or --encoder timm:NAME (or an encoder of yours, module:name)")
        if self.encoder:
            check_encoder(self.encoder, self.encoder_weights)
        elif self.encoder_weights:
            raise ValueError("--encoder_weights goes with --encoder: a run has its weights")


class Frozen(NamedTuple):
    """An encoder that is not trained any further.

    Attributes:
        encoder: On the CPU, in evaluation mode.
        identity: Text that differs between any two models, for the settings of tables.
        trained: Sampling of the clips that it was trained on, as `clips_config` takes it; {} if there is none.
    """

    encoder: "Encoder | FrameEncoder"
    identity: str
    trained: dict[str, Any] = {}  # noqa: RUF012  never written to


def open_frozen(config: EncoderChoice, world: "World", *, seed: int = 0) -> Frozen:
    """Open the encoder that a command line chose; all ranks call it.

    Args:
        config: the command's.
        world: all ranks.
        seed: of random weights.

    Raises:
        ValueError: there is no such model, its file cannot be used, or it differs between nodes.
    """
    if is_hook(config.encoder, known=(TIMM,)):
        return open_hook(
            config.encoder, world, num_frames=config.encoder_frames, img_size=config.encoder_size, seed=seed
        )
    if config.encoder:
        name, weights = config.encoder.removeprefix(TIMM), config.encoder_weights
        return open_image(
            name, weights, world, num_frames=config.encoder_frames, img_size=config.encoder_size, seed=seed
        )
    return open_run(config.run, world)


def open_run(run: str, world: "World", *, open_file: Callable[[Path], Any] | None = None) -> Frozen:
    """Open the encoder of a run, a model file or a foreign checkpoint, as `open_frozen` does.

    Args:
        run: as in `EncoderChoice`.
        world: all ranks.
        open_file: opens the model file; None takes the encoder alone.
    """
    from mae3d.weights.files import open_encoder

    file = agreed_model_file(run, world)
    return Frozen((open_file or open_encoder)(file), agreed_model_hash(file, world), trained_data(file))


def open_image(
    name: str, weights: str, world: "World", *, num_frames: int, img_size: "Size | None", seed: int = 0
) -> Frozen:
    """Open an image ViT, as `open_frozen` does; the arguments are `open_frame_encoder`'s."""
    from mae3d.weights.frames import open_frame_encoder, state_hash

    encoder = open_frame_encoder(name, weights, num_frames=num_frames, img_size=img_size, seed=seed)
    identity = f"{TIMM}{name} {state_hash(encoder)}"
    world.check_same({f"{TIMM}{name}": identity}, "Make the same weights reachable on every node")
    return Frozen(encoder, identity)


def open_hook(text: str, world: "World", *, num_frames: int, img_size: "Size | None", seed: int) -> Frozen:
    """Open an encoder of the user's, as `open_frozen` does; the arguments are `open_hook_encoder`'s."""
    from mae3d.model.foreign import open_hook_encoder
    from mae3d.weights.frames import state_hash

    encoder = open_hook_encoder(text, num_frames=num_frames, img_size=img_size, seed=seed)
    identity = f"{text} ({code_of(text)}) {state_hash(encoder)}"
    world.check_same({text: identity}, "Make the same code and weights reachable on every node")
    return Frozen(encoder, identity)


def check_encoder(encoder: str, weights: str, *, option: str = "--encoder_weights ") -> None:
    """Refuse an encoder that is neither timm's, as `check_timm`, nor one of the user's; ValueError."""
    if not is_hook(encoder, known=(TIMM,)):
        check_timm(encoder, weights, option=option)
    elif weights:
        raise ValueError(f"{option}{weights}: {encoder} finds its weights itself: give them among its settings")


def check_timm(encoder: str, weights: str, *, option: str = "--encoder_weights ") -> None:
    """Refuse an image ViT that is not named as such, or without a word on its weights; ValueError.

    Args:
        encoder: `timm:NAME`.
        weights: A file, `download` or `none`.
        option: Beginning of the text that gives the weights, for the message.
    """
    if not encoder.removeprefix(TIMM).strip() or not encoder.startswith(TIMM):
        raise ValueError(f"{encoder!r} is no image ViT: give timm:NAME, as timm:vit_small_patch14_dinov2")
    if not weights:
        raise ValueError(
            f"{encoder} has no weights: give {option}FILE (timm's or their authors' names), {option}download (timm "
            f"fetches them from the Hugging Face Hub) or {option}none (untrained)"
        )
