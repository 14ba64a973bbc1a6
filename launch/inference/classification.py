"""A classifier and samples ─► predictions.parquet, and from it metrics.json, classes.csv and a confusion matrix.

told = classify(config, world)      # EvaluateConfig, World; what to print

Scores of a sample: the softmax of each view (several labels: the sigmoid), averaged over clips x crops. Upstream sums
them, which ranks alike.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.common.tables import write_csv

if TYPE_CHECKING:
    import pyarrow as pa

    from launch.inference.samples import Samples
    from launch.inference.settings import EvaluateConfig
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import ClassifierConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch

PREDICTIONS, METRICS = "predictions.parquet", "metrics.json"
TOP = 5


def classify(config: "EvaluateConfig", world: "World") -> str:
    """Writes the results into `config.out`; to be called by all processes.

    Returns:
        What to tell, on the first process; "" on others.

    Raises:
        ValueError: a setting, the model or the dataset is not as it should be; the message says what to do.
        OSError: a file cannot be written.
    """
    import pyarrow.parquet as pq

    from launch.common.clip_options import agreed_model_file, trained_data
    from launch.inference.samples import open_samples
    from launch.inference.settings import common_settings
    from launch.inference.sharded_table import Parts, fill, sample_keys
    from mae3d.io.files import write_text
    from mae3d.weights.files import load_classifier
    from pipelines.stream import evaluation_clips

    file = agreed_model_file(config.run, world)
    model = load_classifier(file)
    own, views = model.config, config.num_clips * config.num_crops
    samples = open_samples(config.data, trained_data(file), own, world)
    corpus, rows = samples.corpus, samples.rows
    _number_labels(samples, own)
    batch_size = max(1, config.batch // views)
    parts = Parts(
        Path(config.out) / PREDICTIONS,
        num_rows=len(rows),
        batch_size=batch_size,
        settings=common_settings(config, file, samples, world)
        | {"num_clips": config.num_clips, "num_crops": config.num_crops},
    )
    model.to(world.device)
    made = fill(
        parts,
        world=world,
        open_stream=lambda chosen: evaluation_clips(
            corpus,
            samples.clips,
            rows=rows[chosen],
            num_frames=own.num_frames,
            size=own.img_size,
            num_clips=config.num_clips,
            num_crops=config.num_crops,
            batch_size=batch_size,
            local_world=world.place.local_size,
            device=world.device,
        ),
        keys_of=lambda chosen: sample_keys(corpus, rows[chosen]),
        outputs_of=lambda batch: _outputs(
            scores_of(model, batch, at_once=config.batch, precision=config.precision), corpus, batch, own
        ),
        what="samples",
    )
    if not world.is_first:
        return ""
    out = Path(config.out)
    metrics = summarise(pq.read_table(parts.path, columns=["labels", "scores"]), own, out)
    facts = {"run": config.run, "num_clips": config.num_clips, "num_crops": config.num_crops}
    write_text(out / METRICS, json.dumps(facts | metrics | {"settings": parts.settings}, indent=1) + "\n")
    told = _told(metrics, own, views=f"{config.num_clips} x {config.num_crops}")
    return f"{told}\n{'written' if made else 'finished already'}: {out}"


def _number_labels(samples: "Samples", own: "ClassifierConfig") -> None:
    """The dataset's labels under the model's numbers, checked; a dataset without any label is none's to match."""
    from pipelines.samples.corpus import check_labels
    from pipelines.samples.labels import numbered_as

    corpus, rows = samples.corpus, samples.rows
    if not len(corpus.labels.values):
        return
    corpus.labels = numbered_as(corpus.labels, own.class_names, rows=rows)
    labelled = rows[corpus.labels.per_sample[rows] > 0]
    check_labels(corpus, labelled, num_classes=own.num_classes, several=own.multi_label, training=False)


def scores_of(model: "Classifier", batch: "Batch", *, at_once: int, precision: str) -> np.ndarray:
    """(B, classes) float32: probabilities averaged over the views of each sample.

    Args:
        model: in evaluation mode, on the batch's device.
        batch: B samples with R views each.
        at_once: clips in one forward pass.
        precision: `fp32`, or `bf16` for autocast; softmax and mean are float32 in any case.
    """
    import torch

    from mae3d.analysis.exact import each_clip
    from mae3d.model.classifier import view_scores

    def logits_of(clips: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(clips).float()

    logits = torch.cat([each_clip(logits_of, clips) for clips in batch.clips.flatten(0, 1).split(at_once)])
    by_view = logits.unflatten(0, batch.clips.shape[:2])
    scores = view_scores(by_view, multi_label=model.config.multi_label) / by_view.shape[1]
    return scores.cpu().numpy()


def _outputs(scores: np.ndarray, corpus: "Corpus", batch: "Batch", own: "ClassifierConfig") -> "dict[str, pa.Array]":
    """The columns of a batch: prediction, its name and score, whether it is right, all scores."""
    import pyarrow as pa

    labels = [corpus.labels_of(row) for row in batch.rows.tolist()]
    best = scores.argmax(axis=1)
    names = own.class_names or [str(number) for number in range(own.num_classes)]
    # Stable, so that of equal scores the smaller class comes first, as in mae3d.analysis.scores.
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :TOP].tolist()
    columns: dict[str, pa.Array] = {
        "prediction": pa.array(best, pa.int32()),
        "prediction_name": pa.array([names[number] for number in best.tolist()], pa.string()),
        "score": pa.array(scores[np.arange(len(best)), best], pa.float32()),
        "correct": pa.array([top[0] in of if of else None for top, of in zip(ranked, labels, strict=True)], pa.bool_()),
    }
    if not own.multi_label:
        hits = [of[0] in top if of else None for top, of in zip(ranked, labels, strict=True)]
        columns["hit5"] = pa.array(hits, pa.bool_())
    offsets = np.arange(len(scores) + 1, dtype=np.int32) * scores.shape[1]
    columns["scores"] = pa.ListArray.from_arrays(offsets, pa.array(scores.ravel(), pa.float32()))
    return columns


def summarise(table: "pa.Table", own: "ClassifierConfig", out: Path) -> dict[str, Any]:
    """Figures of the samples that were read and have labels; writes classes.csv and a confusion matrix.

    A sample without a label is left out; of a model of several labels it counts as one of no class, as in finetuning,
    unless no sample has any.

    Args:
        table: columns labels and scores of predictions.parquet.
        own: the classifier's config.
        out: the folder.
    """
    import pyarrow.compute as pc

    from mae3d.analysis.scores import average_precisions

    read = table.filter(table["scores"].is_valid())
    labels = read["labels"].to_pylist()
    none_is_a_label = own.multi_label and any(labels)
    scored = read.filter([bool(of) or none_is_a_label for of in labels])
    counts = {
        "samples": len(table),
        "failed": len(table) - len(read),
        "unlabelled": len(read) - len(scored),
        "scored": len(scored),
    }
    if not len(scored):
        return counts
    flat: Any = pc.list_flatten(scored["scores"])
    scores = flat.to_numpy().reshape(-1, own.num_classes)
    labels_of_scored: list[Any] = scored["labels"].to_pylist()
    if own.multi_label:
        targets = np.zeros(scores.shape, dtype=np.uint8)
        for target, of in zip(targets, labels_of_scored, strict=True):
            target[of] = 1
        metrics, classes = _several_labels(scores, targets, own)
    else:
        targets = np.array([of[0] for of in labels_of_scored], dtype=np.int64)
        metrics, classes = _one_label(scores, targets, own, out)
    precisions = [None if math.isnan(value) else value for value in average_precisions(scores, targets).tolist()]
    classes["average_precision"] = precisions
    metrics["map"] = float(np.mean([value for value in precisions if value is not None]))
    write_csv(out / "classes.csv", classes)
    return counts | metrics


def _several_labels(
    scores: np.ndarray, targets: np.ndarray, own: "ClassifierConfig"
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Figures, and columns by class."""
    from mae3d.analysis.scores import summary

    names = list(own.class_names) or [str(number) for number in range(own.num_classes)]
    classes = {"class": list(range(own.num_classes)), "name": names, "samples": targets.sum(axis=0).tolist()}
    return dict(summary(scores, targets)), classes


def _one_label(
    scores: np.ndarray, targets: np.ndarray, own: "ClassifierConfig", out: Path
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Likewise; writes the confusion matrix."""
    from mae3d.analysis.scores import class_table, confusion, summary
    from mae3d.tracking.plots import plot_confusion

    names = list(own.class_names) or None
    metrics: dict[str, Any] = dict(summary(scores, targets))
    # Of a share of N samples, the binomial distribution's.
    metrics["top1_standard_error"] = (metrics["top1"] * (1 - metrics["top1"]) / len(scores)) ** 0.5
    classes = class_table(scores, targets, names=names, k=TOP)
    metrics["mean_class_top1"] = float(np.mean([share for share in classes["top1"] if share is not None]))
    matrix = confusion(scores, targets)
    predicted = dict(zip(classes["name"], matrix.T.tolist(), strict=True))
    write_csv(out / "confusion.csv", {"true \\ predicted": classes["name"], **predicted})
    plot_confusion(matrix, out / "confusion.png", names=names)
    return metrics, classes


def _told(metrics: Mapping[str, Any], own: "ClassifierConfig", *, views: str) -> str:
    lines = {"samples": f"{metrics['scored']:,} of {metrics['samples']:,} scored, {views} views each"}
    if metrics["unlabelled"]:
        lines["samples"] += f"; {metrics['unlabelled']:,} have no label: predicted, not scored"
    if metrics["failed"]:
        lines["samples"] += f"; {metrics['failed']:,} could not be read: null in {PREDICTIONS}"
    if metrics["scored"]:
        figures = [f"mAP {metrics['map']:.2%}", f"loss {metrics['loss']:.4f}"]
        if not own.multi_label:
            top5 = [f"top-5 {metrics['top5']:.2%}"] if own.num_classes > TOP else []
            error = f"(standard error {metrics['top1_standard_error']:.2%})"
            figures = [f"top-1 {metrics['top1']:.2%} {error}", *top5, *figures]
            lines["classes"] = f"{own.num_classes}, mean of their top-1 {metrics['mean_class_top1']:.2%}"
        lines["result"] = ", ".join(figures)
    return "\n".join(f"{name + ':':9}{text}" for name, text in lines.items())
