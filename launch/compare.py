"""Models and labelled clips ─► one table and page: is the run better than an image model, or than no training at all?

python launch/compare.py --models own=RUN image=timm:vit_small_patch14_dinov2@FILE --data.shards OUT \\
    --data.select.split train --test.shards OUT --test.select.split val --out DIR
python launch/compare.py --models a=RUN b=OTHER_RUN small=timm:vit_tiny_patch16_224@none … --few_shot 1 5 10

A model is NAME=RUN (anything that launch/probe.py takes), or NAME=timm:MODEL@WEIGHTS, an image ViT that sees each frame
alone; WEIGHTS are a file, `download` or `none`. The first run's architecture with random weights (`untrained`) and
`chance` are always in. DIR/NAME keeps each model's features: started again, or with more models, it goes on.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig
from launch.common.encoders import TIMM, Frozen, check_timm, open_image, open_run
from launch.common.sole_writer import sole_writer
from launch.common.tables import aligned, columns_of, write_csv
from launch.inference.probe_sets import check_shards, labelled_sets, refuse_other_results, untrained
from mae3d.io.bounds import FILLED, GREATEST, bounded, check_bounds, seeded
from mae3d.io.resume import free

if TYPE_CHECKING:
    from launch.inference.comparing import Compared
    from mae3d.distributed import World

RESULTS, TABLE, PAGE = "compare.json", "compare.csv", "compare.html"
UNTRAINED, CHANCE = "untrained", "chance"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class Choice(NamedTuple):
    """A model of the command line: its name, and a path, or timm's name with weights."""

    name: str
    path: str
    weights: str


@dataclass(frozen=True)
class CompareConfig:
    """Compare the frozen features of models on labelled clips.

    Attributes:
        models: One or more of NAME=RUN and NAME=timm:MODEL@WEIGHTS.
        data: The train set of the probes. A model without a sampling of its own takes the first run's.
        test: The test set: shards, select and labels are its own, labels are matched to the train set's by name; the
            rest counts as in data where it is not given. Its samples are drawn again for the intervals, by source
            video: the same name is the same video.
        out: Folder for the features, compare.json, compare.csv and compare.html.
        encoder_frames: Frames of an image model's clips; null takes the first run's.
        encoder_size: Side of an image model's square frames, or height and width; null is each model's own.
        layer: Number of blocks that are run; 0 is the patch embedding, -1 the last block.
        pool: `mean` over the patches' tokens, or `cls`, the class token.
        num_clips: Clips of each sample whose vectors are averaged.
        few_shot: Numbers of train samples per class for the linear probe, beside all of them; none = `--few_shot []`.
        seeds: Draws of the few samples, whose mean is taken.
        time_order: Whether to measure if features show that a clip plays backwards; every clip is embedded twice.
        draws: Draws of the bootstrap.
        seed: Of the untrained model, random weights, the first few-shot draw, the choice of C and the bootstrap.
        batch: Samples at a time.
        precision: Of the features: `fp32`, or `bf16`, faster on a GPU.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    models: tuple[str, ...]
    data: ClipsConfig
    test: ClipsConfig
    out: str = field(metadata=FILLED)
    encoder_frames: int | None = bounded(None, least=1, most=1 << 16)
    encoder_size: int | tuple[int, int] | None = bounded(None, least=1, most=1 << 16)
    layer: int = -1
    pool: Literal["mean", "cls"] = "mean"
    num_clips: int = bounded(1, least=1, most=1 << 16)
    few_shot: tuple[int, ...] = bounded((1, 5), least=1)
    seeds: int = bounded(3, least=1, most=1 << 16)
    time_order: bool = True
    draws: int = bounded(2000, least=100, most=1 << 20)
    seed: int = seeded()
    batch: int = bounded(8, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shards(self.data, self.test)
        if not self.models:
            raise ValueError("--models: give one or more of NAME=RUN and NAME=timm:MODEL@WEIGHTS")
        names = [choice.name for choice in self.choices()]
        if len(set(names)) < len(names):
            raise ValueError(f"--models {' '.join(names)}: two models have one name")
        if len(set(self.few_shot)) < len(self.few_shot):
            raise ValueError(f"--few_shot {' '.join(map(str, self.few_shot))}: a number is given twice")
        if self.seed > GREATEST - self.seeds:
            raise ValueError(f"--seed {self.seed} leaves no room for --seeds {self.seeds}: give a smaller one")

    def choices(self) -> list[Choice]:
        """Return the models in their order; ValueError for a text that is none."""
        chosen = []
        for text in self.models:
            name, equals, path = text.partition("=")
            if not equals or not path.strip() or not _NAME.fullmatch(name) or name in (UNTRAINED, CHANCE):
                raise ValueError(
                    f"--models {text}: give NAME=RUN or NAME=timm:MODEL@WEIGHTS; a name is of at most 40 letters, "
                    f"digits, _, - and ., and neither {UNTRAINED} nor {CHANCE}, which are always in"
                )
            weights = ""
            if path.startswith(TIMM):
                path, _, weights = path.partition("@")
                check_timm(path, weights, option=f"--models {name}={path}@")
            chosen.append(Choice(name, path, weights))
        return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(CompareConfig, arguments, prog="compare.py", description=str(__doc__))
    set_threads()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="comparison", what="models"),
    ):
        results = compare(config, world)
        if world.is_first:
            from launch.report.comparison import cells, verdicts

            print(*verdicts(results), sep="\n")
            print(*aligned(columns_of(cells(results))), sep="\n")
            print(Path(config.out) / PAGE)
        return EXIT_DONE


def compare(config: CompareConfig, world: "World") -> dict[str, Any]:
    """Compute the features of every model, on all ranks; probe and compare them, on rank 0.

    Returns:
        The content of compare.json; empty on other ranks.

    Raises:
        ValueError: A setting, a model or a dataset is wrong; the message gives the remedy.
        OSError: A file cannot be written.
    """
    from mae3d.io.files import write_text
    from mae3d.io.html import refuse_other_page

    out = Path(config.out)
    refuse_other_results(out / RESULTS, names=("models", "differences"))
    refuse_other_page(out / PAGE)
    if (out / TABLE).exists() and not (out / RESULTS).exists():  # the table comes after the results
        raise ValueError(f"{out / TABLE}: not replaced, because MAE3D has not made it: give another --out")
    opened = _open(config, world)
    models, facts = [], []
    for name, frozen in opened.items():
        model, fact = _embed(config, name, frozen, world)
        models.append(model)
        facts.append(fact)
    if not world.is_first:
        return {}
    results = _judge(config, models, facts)
    from launch.report.comparison import comparison_page, rows_of

    write_text(out / RESULTS, json.dumps(results, indent=1) + "\n")
    write_csv(out / TABLE, columns_of(rows_of(results)))
    write_text(out / PAGE, comparison_page(results))
    return results


def _open(config: CompareConfig, world: "World") -> dict[str, Frozen]:
    """Open all models before any clip is read; the untrained one comes last."""
    from mae3d.analysis.features import check_pool, layer_of

    choices = config.choices()
    runs = {choice.name: open_run(choice.path, world) for choice in choices if not choice.weights}
    first = next(iter(runs.values()), None)
    frames = config.encoder_frames or (first.encoder.config.num_frames if first else 16)
    opened = {}
    for choice in choices:
        opened[choice.name] = runs.get(choice.name) or open_image(
            choice.path.removeprefix(TIMM),
            choice.weights,
            world,
            num_frames=frames,
            img_size=config.encoder_size,
            seed=config.seed,
        )
    control = first or next(iter(opened.values()))
    opened[UNTRAINED] = Frozen(
        untrained(control.encoder, config.seed), f"untrained, seed {config.seed}", control.trained
    )
    for name, frozen in opened.items():
        try:
            check_pool(frozen.encoder, config.pool)
            layer_of(frozen.encoder, config.layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        opened[name] = frozen._replace(trained=frozen.trained or control.trained)
    return opened


def _embed(config: CompareConfig, name: str, frozen: Frozen, world: "World") -> "tuple[Compared, dict[str, Any]]":
    """Write the tables of a model, unless they are there already, and return it with its size and speed."""
    from launch.inference.comparing import SIDES, Compared
    from launch.inference.embeddings import Embedder, clips_per_second, embed_samples
    from launch.inference.probing import require_room

    encoder = frozen.encoder
    train, test = labelled_sets(config.data, config.test, frozen.trained, encoder.config, world, two_classes=True)
    model = Compared(name, Path(config.out) / name, train, test)

    def prepare() -> None:
        model.folder.mkdir(parents=True, exist_ok=True)
        sizes = {side: len(model.samples(side).rows) for side in SIDES}
        classes, width = train.corpus.num_classes, encoder.config.embed_dim
        require_room(model.folder, ("knn", "linear"), **sizes, classes=classes, width=width, tokens=1)

    world.on_first(prepare)
    for backwards in (False, True)[: 1 + config.time_order]:
        embedder = Embedder(
            encoder,
            world.device,
            layer=config.layer,
            pool=config.pool,
            num_clips=config.num_clips,
            precision=config.precision,
            reverse=backwards,
        )
        for side in SIDES:
            if world.is_first:
                print(f"{name}: {side} clips{' backwards' if backwards else ''}", file=sys.stderr, flush=True)
            embed_samples(
                model.table(side, backwards=backwards),
                embedder,
                model.samples(side),
                model_sha256=frozen.identity,
                world=world,
                batch_size=config.batch,
            )
    facts = {
        "identity": frozen.identity,
        "image": bool(getattr(encoder.config, "backbone", "")),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "frames": encoder.config.num_frames,
        "size": encoder.config.img_size,
        "sampling_rate": train.clips.sampling_rate,
        "target_fps": train.clips.target_fps,
        "clips_per_s": clips_per_second(embedder, batch_size=config.batch) if world.is_first else None,
        "device": world.device.type,
    }
    encoder.to("cpu")  # one model at a time on the GPU
    return model, facts


def _judge(config: CompareConfig, models: "Sequence[Compared]", facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Probe all models on the samples that they share, and return the content of compare.json."""
    from launch.inference.comparing import chance_hits, common_samples, hits_of
    from mae3d.analysis.bootstrap import intervals

    common = common_samples(models, time_order=config.time_order)
    few, order = config.few_shot, config.time_order
    hits = {
        model.name: hits_of(model, common, few_shot=few, seeds=config.seeds, seed=config.seed, time_order=order)
        for model in models
    }
    hits[CHANCE] = chance_hits(common, few_shot=few, time_order=order)
    sources = {choice.name: f"{choice.path}@{choice.weights}".removesuffix("@") for choice in config.choices()}
    kinds = {model.name: fact["image"] for model, fact in zip(models, facts, strict=True)}
    pairs = [(name, UNTRAINED) for name in sources]
    pairs += [(a, b) for a in sources for b in sources if not kinds[a] and kinds[b]]
    pairs += [(a, b) for i, a in enumerate(sources) for b in list(sources)[i + 1 :] if not kinds[a] and not kinds[b]]
    values = {json.dumps([name, measure]): hit for name, of in hits.items() for measure, hit in of.items()}
    for a, b in pairs:
        values |= {json.dumps([a, b, measure]): hits[a][measure] - hits[b][measure] for measure in hits[a]}
    measured = intervals(values, groups=common.groups, draws=config.draws, seed=config.seed)

    def measures(*key: str) -> dict[str, Any]:
        return {measure: measured[json.dumps([*key, measure])]._asdict() for measure in hits[CHANCE]}

    described = {model.name: fact for model, fact in zip(models, facts, strict=True)} | {CHANCE: {}}
    sources |= {UNTRAINED: "random weights", CHANCE: "no features"}
    corpus = models[0].train.corpus
    return {
        "models": [
            {"name": name, "source": sources[name], **fact, "measures": measures(name)}
            for name, fact in described.items()
        ],
        "differences": [{"model": a, "against": b, "measures": measures(a, b)} for a, b in pairs],
        "classes": corpus.num_classes,
        "train": {"samples": len(common.rows["train"]), "left_out": common.left_out["train"]},
        "test": {
            "samples": len(common.rows["test"]),
            "left_out": common.left_out["test"],
            "videos": len(set(common.groups)),
            "of_train_videos": common.of_train_videos,
        },
        "settings": {name: getattr(config, name) for name in ("layer", "pool", "num_clips", "seeds", "seed", "draws")},
    }


if __name__ == "__main__":
    raise SystemExit(main())
