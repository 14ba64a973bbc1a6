"""`--init` of a pretraining ─► the weights that its model starts from, and which of them were taken, in words.

initial = InitialWeights(config.init, model_config, run, world, decoder=config.init_decoder)     # before the claim
initial.load_into(model)
print(initial)
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from launch.common.encoders import TIMM
from mae3d.io.hooks import is_hook

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.io.shapes import Size
    from mae3d.model.config import MAEConfig
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.weights.inflate import Inflate


class InitialWeights:
    """A trained autoencoder, or an encoder alone, that rank 0 holds; the engine broadcasts it to the others."""

    def __init__(
        self,
        init: str,
        model_config: "MAEConfig",
        run: "Run",
        world: "World",
        *,
        decoder: bool,
        weights: str = "",
        inflate: str = "none",
        seed: int = 0,
    ):
        """Open and check the file, unless there is none or a checkpoint of the run replaces it.

        Args:
            init: a path that mae3d.open_encoder opens, or timm:NAME; "" for none.
            model_config: of the model that is trained.
            run: does not need the file any more if it has a checkpoint that began from the same `init`.
            world: all ranks; rank 0 alone reads.
            decoder: take the decoder as well, if the file has one that fits.
            weights: of timm:NAME.
            inflate: `mean` or `center`: the way in which an image model becomes one of clips; `none` refuses it.
            seed: of random weights.

        Raises:
            ValueError: there are no weights, or they are of another size, which the message names; on all ranks.
        """
        size = model_config.num_frames, model_config.t_patch_size
        self._open_encoder = partial(open_init, init, weights, inflate, size=size, seed=seed)
        self._inflate, self._decoder = inflation(inflate, size), decoder and not init.startswith(TIMM)
        self._source: MAE | Encoder | None = None
        self._description = "from scratch"

        def open_on_first() -> None:
            if has_checkpoint_from(run, init):
                self._description = f"{init}, when the run began"
            else:
                self._open(init, model_config)

        if init:
            world.on_first(open_on_first)

    def __str__(self) -> str:
        return self._description

    def load_into(self, model: "MAE") -> None:
        """Copy the weights into the model, on rank 0: the engine broadcasts its model to the others."""
        from mae3d.weights.resize import load_autoencoder

        if self._source is not None:
            load_autoencoder(model, self._source)
            self._source = None

    def _open(self, init: str, model_config: "MAEConfig") -> None:
        from mae3d.model.frames import FrameEncoder
        from mae3d.model.mae import MAE
        from mae3d.weights.files import WeightsError, open_model
        from mae3d.weights.inflate import refit_normalisation
        from mae3d.weights.resize import check_autoencoder

        why = "as init_decoder says"
        source: MAE | Encoder | FrameEncoder
        if self._decoder:
            try:
                model = open_model(init, inflate=self._inflate)
            except WeightsError as error:
                source, why = self._open_encoder(), str(error)
            else:
                source, why = (model, "") if isinstance(model, MAE) else (model.encoder, "it is a classifier")
        else:
            source = self._open_encoder()
        if isinstance(source, FrameEncoder):
            raise ValueError(
                f"init={init}: is an image ViT, and pretraining begins from a video encoder: give --init_inflate mean "
                "or center, or another --init"
            )
        if self._inflate:
            encoder = source.encoder if isinstance(source, MAE) else source
            refit_normalisation(encoder, model_config)
            source.config = replace(source.config, mean=encoder.config.mean, std=encoder.config.std)
        self._source = source
        try:
            check_autoencoder(self._source, model_config)
        except ValueError as error:
            raise ValueError(f"init={init}: {error}") from error
        if isinstance(self._source, MAE):
            self._description = f"encoder and decoder of {init}"
        else:
            self._description = f"the encoder of {init} alone, the decoder from scratch ({why})"
        if self._inflate:
            self._description += f"; inflated from an image model ({self._inflate.how})"
        if self._source.config.grid != model_config.grid:
            old, new = ("x".join(map(str, grid)) for grid in (self._source.config.grid, model_config.grid))
            self._description += f"; positions interpolated from {old} to {new} tokens (time, height, width)"
        self._description += "; optimizer and schedule from the beginning"


def open_init(
    init: str, weights: str, inflate: str, *, size: tuple[int, int], seed: int, img_size: "Size | None" = None
) -> "Encoder | FrameEncoder":
    """Open the encoder that `init` names.

    Args:
        init: a path that mae3d.open_encoder opens, timm:NAME, or `module:name` of the user's.
        weights: of timm:NAME.
        inflate: `mean` or `center` makes a video encoder of an image model; `none` does not.
        size: frames of a clip and of a token.
        seed: of random weights.
        img_size: of timm:NAME that is not inflated, and of the user's; None is the model's own.
    """
    from mae3d.model.foreign import open_hook_encoder
    from mae3d.weights.files import open_encoder
    from mae3d.weights.frames import inflate_frames, open_frame_encoder

    wish = inflation(inflate, size)
    if is_hook(init, known=(TIMM,)):
        return open_hook_encoder(init, num_frames=size[0], img_size=img_size, seed=seed)
    if not init.startswith(TIMM):
        return open_encoder(init, inflate=wish)
    name = init.removeprefix(TIMM)
    if wish is None:
        return open_frame_encoder(name, weights, num_frames=size[0], img_size=img_size, seed=seed)
    return inflate_frames(open_frame_encoder(name, weights, seed=seed), wish)


def inflation(how: str, size: tuple[int, int]) -> "Inflate | None":
    """Return the way in which an image model becomes one of clips of `size`; None if `how` is `none`."""
    from mae3d.weights.inflate import Inflate

    return None if how == "none" else Inflate(how, *size)


def has_checkpoint_from(run: "Run", init: str) -> bool:
    """Return whether the run has a checkpoint and began from the weights `init`, which it then needs no more."""
    from mae3d.tracking.run_dir import CHECKPOINTS, LATEST

    return (run.folder / CHECKPOINTS / LATEST).is_file() and run.stored().get("init") == init
