"""`--init` of a pretraining ─► the weights that its model starts from, and which of them were taken, in words.

initial = InitialWeights(config.init, model_config, run, world, decoder=config.init_decoder)     # before the claim
initial.load_into(model)
print(initial)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.encoder import Encoder
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run


class InitialWeights:
    """A trained autoencoder, or an encoder alone, that rank 0 holds; the engine broadcasts it to the others."""

    def __init__(self, init: str, model_config: "MAEConfig", run: "Run", world: "World", *, decoder: bool):
        """Open and check the file, unless there is none or a checkpoint of the run replaces it.

        Args:
            init: a path that mae3d.open_encoder opens; "" for none.
            model_config: of the model that is trained.
            run: does not need the file any more if it has a checkpoint that began from the same `init`.
            world: all ranks; rank 0 alone reads.
            decoder: take the decoder as well, if the file has one that fits.

        Raises:
            ValueError: there are no weights, or they are of another size, which the message names; on all ranks.
        """
        self._source: MAE | Encoder | None = None
        self._description = "from scratch"

        def open_on_first() -> None:
            if has_checkpoint_from(run, init):
                self._description = f"{init}, when the run began"
            else:
                self._open(init, model_config, decoder=decoder)

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

    def _open(self, init: str, model_config: "MAEConfig", *, decoder: bool) -> None:
        from mae3d.model.encoder import Encoder
        from mae3d.model.frames import FrameEncoder
        from mae3d.model.mae import MAE
        from mae3d.weights.files import WeightsError, open_encoder, open_model
        from mae3d.weights.resize import check_autoencoder

        why = "as init_decoder says"
        source: MAE | Encoder | FrameEncoder
        if decoder:
            try:
                model = open_model(init)
            except WeightsError as error:
                source, why = open_encoder(init), str(error)
            else:
                source, why = (model, "") if isinstance(model, MAE) else (model.encoder, "it is a classifier")
        else:
            source = open_encoder(init)
        if isinstance(source, FrameEncoder):
            raise ValueError(
                f"init={init}: holds an image ViT; pretraining begins from a video encoder, or from scratch"
            )
        self._source = source
        try:
            check_autoencoder(self._source, model_config)
        except ValueError as error:
            raise ValueError(f"init={init}: {error}") from error
        if isinstance(self._source, MAE):
            self._description = f"encoder and decoder of {init}"
        else:
            self._description = f"the encoder of {init} alone, the decoder from scratch ({why})"
        if self._source.config.grid != model_config.grid:
            old, new = ("x".join(map(str, grid)) for grid in (self._source.config.grid, model_config.grid))
            self._description += f"; positions interpolated from {old} to {new} tokens (time, height, width)"
        self._description += "; optimizer and schedule from the beginning"


def has_checkpoint_from(run: "Run", init: str) -> bool:
    """Return whether the run has a checkpoint and began from the weights `init`, which it then needs no more."""
    from mae3d.tracking.run_dir import CHECKPOINTS, LATEST

    return (run.folder / CHECKPOINTS / LATEST).is_file() and run.stored().get("init") == init
