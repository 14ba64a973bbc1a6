"""`--data.*` of the commands that only look at clips, and the settings of a run ─► how clips are sampled.

file = find_model_file(config.run)
clips = clips_config(config.data, run_of(file))       # a DataConfig: the options, else the run's settings
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mae3d.io.bounds import bounded, check_bounds
from mae3d.io.hooks import canonical_hooks, hooked, is_hook, require_trust
from mae3d.io.resume import free
from pipelines.config import CACHE_GB, RATE, DataConfig, SelectConfig

if TYPE_CHECKING:
    from mae3d.distributed import World


@dataclass(frozen=True)
class ClipsConfig:
    """The clips to look at, at fixed positions and crops; the samples are chosen here, not by the run.

    Attributes:
        shards: Folders made by `mae3d preprocess build`, or URLs of such.
        labels: A CSV or Parquet file with columns name (or key) and label that replaces the datasets' own labels.
        select: Which samples take part.
        exclude_bad_shards: Leave out the samples of shards that are missing or not whole, instead of refusing to start.
        cache: Folder for what is fetched from URLs; none = as in pretraining.
        cache_gb: Most that the cache may hold, in GB.
        decode: Where JPEGs are decoded: `mixed` (on the GPU), `cpu`, or `auto` (mixed on a GPU where it works).
        sampling: `strided`, `segments` or a sampler of yours, `module:name` (docs/hooks.md); null takes the run's.
        sampling_rate: Distance of two frames at target_fps; null takes the run's, or 4 for a checkpoint without one.
        target_fps: Frame rate that sampling_rate refers to; null likewise, or 30.
    """

    shards: str | tuple[str, ...] = free("", local=True)
    labels: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)
    exclude_bad_shards: bool = free(False)
    cache: str = free("", local=True)
    cache_gb: float = bounded(free(DataConfig.cache_gb, local=True), **CACHE_GB)
    decode: Literal["auto", "mixed", "cpu"] = free("auto")
    sampling: Literal["strided", "segments"] | str | None = hooked("windows", None, known=("strided", "segments"))
    sampling_rate: float | None = bounded(None, **RATE)
    target_fps: float | None = bounded(None, **RATE)

    def __post_init__(self) -> None:
        check_bounds(self)
        canonical_hooks(self)


def agreed_model_file(run: str, world: "World") -> Path:
    """Return `find_model_file`, the same file on all ranks; all of them call it.

    A run that still trains may write its next checkpoint between the search of one rank and of another. Of a name on
    the Hugging Face Hub rank 0 fetches a commit; ranks whose machine has another cache fetch the same one.
    """
    from mae3d.weights.files import find_model_file
    from mae3d.weights.hub import hub_model

    file = world.on_first(lambda: find_model_file(run))
    if not file.is_file() and (model := hub_model(run)):
        file = find_model_file(str(model._replace(revision=file.parent.name)))
    return file


def agreed_model_hash(file: Path, world: "World") -> str:
    """Return the sha256 of a model file, which has the same content on all ranks; all of them call it.

    Raises:
        ValueError: a node has another file of that name, or none.
    """
    from mae3d.weights.files import content_hash, split_key

    content = content_hash(file) if split_key(file)[0].is_file() else "missing"
    world.check_same({str(file): content}, "Make the same weights reachable on every node")
    return content


def run_of(file: Path) -> Path | None:
    """Return the run of a model file, RUN/checkpoints/step-.../model.safetensors; None for any other file."""
    from mae3d.tracking.run_dir import CHECKPOINTS

    folder = file.resolve().parent.parent
    return folder.parent if folder.name == CHECKPOINTS else None


def stored_config(run: Path | None) -> dict[str, Any]:
    """Return a run's config.yaml as nested plain values; empty without a run."""
    from mae3d.tracking.run_dir import Run

    return Run(run).stored() if run else {}


def read_card(folder: Path) -> dict[str, Any]:
    """Return config.json of an exported folder; empty if there is none."""
    from mae3d.weights.card import read_facts

    return read_facts(folder)


def trained_data(file: Path) -> dict[str, Any]:
    """Return the sampling of the clips that a model was trained on: `data` of its run, or of the card beside it."""
    card = read_card(file.parent)
    stride = {name: card[name] for name in ("sampling_rate", "target_fps") if name in card}
    described: dict[str, Any] = card.get("training", {}).get("data", {}) | stride
    return stored_config(run_of(file)).get("data", described)


def clips_config(options: ClipsConfig, trained: Mapping[str, Any]) -> DataConfig:
    """Return the requested clips, sampled as in training unless the options say otherwise.

    Args:
        options: the command line's.
        trained: settings of the training's DataConfig by name; unknown ones are ignored.

    Raises:
        ValueError: no shards were given, a setting is out of its range, or the clips were chosen by a sampler of the
            user's that nobody but a file names.
    """
    if not options.shards:
        raise ValueError("--data.shards is missing: give the folder made by `mae3d preprocess build`")
    known = {entry.name for entry in fields(DataConfig)}
    stored = {name: value for name, value in trained.items() if name in known and name != "augment"}
    if options.sampling is None and is_hook(sampling := str(stored.get("sampling", ""))):
        require_trust(sampling, option=f"--data.sampling '{sampling}'")
    values = {entry.name: getattr(options, entry.name) for entry in fields(ClipsConfig)}
    given = {name: value for name, value in values.items() if value is not None}
    return DataConfig(**(stored | given))
