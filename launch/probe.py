"""A frozen model, labelled train and test clips ─► the scores of simple probes that read the labels off its features.

mae3d probe --run RUN --data.shards OUT --data.select.split train \\
    --test.shards OUT --test.select.split val --out DIR
mae3d launch -n 8 probe --run RUN --data.shards TRAIN --test.shards VAL --out DIR --num_clips 4
mae3d probe … --probes knn linear attentive --few_shot 1 10 50 --seeds 3
mae3d probe … --random_init true --out CONTROL             # the same model before any training
mae3d probe --encoder timm:vit_small_patch14_dinov2 --encoder_weights FILE …     # an image model, by frames

Features are computed once, on all ranks, and kept in DIR as tables of launch/embed.py; started again it goes on.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig
from launch.common.encoders import EncoderChoice, open_frozen
from launch.common.sole_writer import sole_writer
from launch.common.tables import aligned, columns_of
from launch.inference.probe_sets import check_shards, refuse_other_results
from mae3d.io.bounds import FILLED, GREATEST, bounded, seeded
from mae3d.io.resume import free

if TYPE_CHECKING:
    from launch.common.eval_set import EvalSet
    from mae3d.distributed import World
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder

PROBES = ("knn", "linear", "attentive")
RESULTS = "probe.json"


@dataclass(frozen=True)
class ProbeConfig(EncoderChoice):
    """Probe the frozen features of a model.

    Attributes:
        data: The train set.
        test: The test set: shards, select and labels are its own, labels are matched to the train set's by name; the
            rest counts as in data where it is not given.
        out: Folder for the features, and probe.json.
        probes: One or more of `knn` (cosine similarity s, votes weighted by exp(s / 0.07), as DINO: k = 20 is
            reported), `linear` (logistic regression; C is chosen on a fifth of the train set) and `attentive` (one
            learned query over all tokens, as V-JEPA; keeps these on the disk, in float16: 2.4 MB per clip of ViT-B at
            16 x 224 x 224, and as much again while it is trained).
        layer: Number of blocks that are run; 0 is the patch embedding, -1 the last block.
        pool: Of knn and linear: `mean` over the patches' tokens, or `cls`, the class token.
        num_clips: Clips of each sample whose vectors are averaged; `attentive` sees the middle one alone.
        random_init: Probe the untrained model of the same settings instead: the control.
        token_pool: Blocks of tokens that are averaged for `attentive`, in time, height and width: `2 2 2` keeps an
            eighth of them, where all do not fit onto the disk.
        few_shot: Also with so many train samples a class: `--few_shot 1 10 50`; knn and linear.
        seeds: Draws of the few samples, whose mean and spread are reported.
        seed: Of the untrained model, the first few-shot draw, the choice of C and the attentive probe.
        batch: Samples at a time.
        precision: Of the features: `fp32`, or `bf16`, faster on a GPU.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    USUAL = (
        *("run", "encoder", "data.shards", "data.select.split", "test.shards", "test.select.split", "out", "probes"),
        *("few_shot", "num_clips", "random_init"),
    )
    data: ClipsConfig
    test: ClipsConfig
    out: str = field(metadata=FILLED)
    probes: tuple[str, ...] = ("knn", "linear")
    layer: int = -1
    pool: Literal["mean", "cls"] = "mean"
    num_clips: int = bounded(1, least=1, most=1 << 16)
    random_init: bool = False
    token_pool: tuple[int, int, int] = bounded((1, 1, 1), least=1)
    few_shot: tuple[int, ...] = bounded((), least=1)
    seeds: int = bounded(3, least=1, most=1 << 16)
    seed: int = seeded()
    batch: int = bounded(8, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [probe for probe in self.probes if probe not in PROBES]
        if unknown or not self.probes:
            raise ValueError(f"--probes {' '.join(unknown)}: give some of {', '.join(PROBES)}")
        check_shards(self.data, self.test)
        if self.few_shot and self.seed > GREATEST - self.seeds:
            raise ValueError(f"--seed {self.seed} leaves no room for --seeds {self.seeds}: give a smaller one")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(ProbeConfig, arguments, prog="mae3d probe", description=str(__doc__))
    set_threads()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="probing", what="probes"),
    ):
        results = probe(config, world)
        if world.is_first:
            _report(results)
            print(Path(config.out) / RESULTS)
        return EXIT_DONE


def probe(config: ProbeConfig, world: "World") -> dict[str, Any]:
    """Compute the features, on all ranks, and probe them, on rank 0.

    Returns:
        The content of probe.json; empty on other ranks.

    Raises:
        ValueError: A setting, the model or a dataset is wrong; the message gives the remedy.
        OSError: The features cannot be written.
    """
    from launch.inference.probe_sets import labelled_sets, untrained
    from launch.inference.probing import FeatureTables, compare, require_room
    from mae3d.analysis.features import check_pool
    from mae3d.io.files import write_text

    encoder, model, trained = open_frozen(config, world, seed=config.seed)
    check_pool(encoder, config.pool)
    if config.random_init:
        encoder, model = untrained(encoder, config.seed), f"untrained, seed {config.seed}"
    refuse_other_results(Path(config.out) / RESULTS, names=("model", "probes"))
    linear = "linear" in config.probes
    train, test = labelled_sets(config.data, config.test, trained, encoder.config, world, two_classes=linear)
    world.on_first(
        lambda: require_room(
            Path(config.out),
            config.probes,
            train=len(train.rows),
            test=len(test.rows),
            classes=train.corpus.num_classes,
            width=encoder.config.embed_dim,
            tokens=math.prod(encoder.config.grid) // math.prod(config.token_pool),
        )
    )
    _embed(config, encoder, model, {"train": train, "test": test}, world)
    if not world.is_first:
        return {}
    tables = FeatureTables(
        Path(config.out),
        num_classes=train.corpus.num_classes,
        multi_label=train.corpus.has_multiple_labels or test.corpus.has_multiple_labels,
        num_heads=encoder.config.num_heads,
        device=world.device,
    )
    results = {"model": model, "layer": config.layer, "pool": config.pool, "num_clips": config.num_clips}
    results |= compare(tables, config.probes, few_shot=config.few_shot, seeds=config.seeds, seed=config.seed)
    write_text(Path(config.out) / RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def _embed(
    config: ProbeConfig,
    encoder: "Encoder | FrameEncoder",
    model: str,
    sets: "dict[str, EvalSet]",
    world: "World",
) -> None:
    """Write vectors of both sets for knn and linear, tokens for the attentive probe, unless they are there already."""
    from launch.inference.embeddings import Embedder, embed_samples
    from launch.inference.probing import TOKENS, VECTORS

    make = partial(Embedder, encoder, world.device, layer=config.layer, precision=config.precision)
    embedders = {}
    if {"knn", "linear"} & set(config.probes):
        embedders[VECTORS] = make(pool=config.pool, num_clips=config.num_clips)
    if "attentive" in config.probes:
        embedders[TOKENS] = make(pool="tokens", half=True, token_pool=config.token_pool)
    for kind, embedder in embedders.items():
        for name, samples in sets.items():
            embed_samples(
                Path(config.out) / kind.format(name),
                embedder,
                samples,
                model_sha256=model,
                world=world,
                batch_size=config.batch,
            )


def _report(results: dict[str, Any]) -> None:
    for name in ("train", "test"):
        part = results[name]
        failed = f", {part['failed']:,} left out: not readable" if part["failed"] else ""
        print(f"{name}: {part['samples']:,} samples of {results['classes']} classes{failed}")
    print(*aligned(columns_of(results["probes"])), sep="\n")
    if results["few_shot"]:
        print(*aligned(columns_of(results["few_shot"])), sep="\n")


if __name__ == "__main__":
    raise SystemExit(main())
