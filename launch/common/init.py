"""`--init` of a pretraining ─► the weights that its model starts from, and what of them was taken, in words.

start = Start(config.init, own, run, world, decoder=config.init_decoder)     # opens and checks; before the claim
start.load_into(model)
print(start)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.encoder import Encoder
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run


class Start:
    """A trained autoencoder, or an encoder alone, that the first process holds; the engine hands it to the others."""

    def __init__(self, init: str, own: "MAEConfig", run: "Run", world: "World", *, decoder: bool):
        """Opens the file, unless there is none or the run has begun.

        Args:
            init: where the weights lie: whatever mae3d.open_encoder opens; "" for none.
            own: the model that is trained.
            run: one with a checkpoint, begun from the same `init`, does not need the file any more.
            world: all processes; only the first one reads.
            decoder: take the decoder as well, where there is one that fits.

        Raises:
            ValueError: there are no weights, or they are of another size, which the message names; on all processes.
        """
        self._source: MAE | Encoder | None = None
        self._told, error = "from scratch", None
        if init and world.is_first:
            if has_begun(run, init):
                self._told = f"{init}, when the run began"
            else:
                try:
                    self._open(init, own, decoder=decoder)
                except ValueError as caught:
                    error = str(caught)
        error = world.share(error)
        if error:
            raise ValueError(error)

    def __str__(self) -> str:
        return self._told

    def load_into(self, model: "MAE") -> None:
        """Gives the model the weights, on the first process: the engine broadcasts its model to the others."""
        from mae3d.weights.resize import load_autoencoder

        if self._source is not None:
            load_autoencoder(model, self._source)
            self._source = None

    def _open(self, init: str, own: "MAEConfig", *, decoder: bool) -> None:
        from mae3d.model.mae import MAE
        from mae3d.weights.files import WeightsError, open_encoder, open_model
        from mae3d.weights.resize import check_autoencoder

        why = "as init_decoder says"
        if decoder:
            try:
                model = open_model(init)
            except WeightsError as error:
                self._source, why = open_encoder(init), str(error)
            else:
                self._source, why = (model, "") if isinstance(model, MAE) else (model.encoder, "it is a classifier")
        else:
            self._source = open_encoder(init)
        try:
            check_autoencoder(self._source, own)
        except ValueError as error:
            raise ValueError(f"init={init}: {error}") from error
        if isinstance(self._source, MAE):
            self._told = f"encoder and decoder of {init}"
        else:
            self._told = f"the encoder of {init} alone, the decoder from scratch ({why})"
        if self._source.config.grid != own.grid:
            old, new = ("x".join(map(str, grid)) for grid in (self._source.config.grid, own.grid))
            self._told += f"; positions interpolated from {old} to {new} tokens (time, height, width)"
        self._told += "; optimizer and schedule from the beginning"


def has_begun(run: "Run", init: str) -> bool:
    """Whether the run's checkpoints hold what was started from the same weights, which are no longer needed then."""
    from mae3d.tracking.run_dir import CHECKPOINTS, LATEST

    return (run.folder / CHECKPOINTS / LATEST).is_file() and run.stored().get("init") == init
