"""A classifier and samples ─► predictions.parquet, and from it metrics.json, classes.csv and a confusion matrix.

report = classify(config, world)      # EvaluateConfig, World; to print

The scores of a sample are the softmax of each view (multi-label: the sigmoid), averaged over clips x crops. Upstream
sums them, which ranks alike.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.common.tables import write_csv, write_rows
from mae3d.io.resources import require_memory

if TYPE_CHECKING:
    import pyarrow as pa

    from launch.common.eval_set import EvalSet
    from launch.inference.settings import EvaluateConfig
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import ClassifierConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch

PREDICTIONS, METRICS = "predictions.parquet", "metrics.json"
MAX_MATRIX = 2000  # classes; of more, the pairs that occur are listed instead of a matrix, and no picture is drawn
CLASSES, CONFUSION, CONFUSION_PICTURE = "classes.csv", "confusion.csv", "confusion.png"
TOP = 5
BYTES_A_SCORE = 16  # of memory that the figures take: the scores, a copy of them, targets and orders


def classify(config: "EvaluateConfig", world: "World") -> str:
    """Write the results into `config.out`; all ranks call it.

    Returns:
        The report to print, on rank 0; "" on others.

    Raises:
        ValueError: a setting, the model or the dataset is wrong; the message gives the remedy.
        OSError: a file cannot be written.
    """
    import pyarrow.parquet as pq

    from launch.common.clip_options import agreed_model_file, trained_data
    from launch.inference.embeddings import with_head
    from launch.inference.evaluate import common_settings, describe_end, evaluate_into_table, open_samples
    from launch.inference.heads import open_head
    from mae3d.io.files import write_text
    from mae3d.weights.files import load_classifier

    file = agreed_model_file(config.run, world)
    model = load_classifier(file)
    samples = open_samples(config.data, trained_data(file), model.config, world)
    _number_labels(samples, model.config)
    world.on_first(lambda: _check_size(len(samples.rows), model.config.num_classes))
    out, views = Path(config.out), {"num_clips": config.num_clips, "num_crops": config.num_crops}
    settings = common_settings(config, file, samples, world) | views
    model.to(world.device)
    head = open_head(config.head, model, world.device, precision=config.precision)
    settings |= head.settings if head else {}

    def columns_of(batch: "Batch") -> "dict[str, pa.Array]":
        scores = scores_of(model, batch, at_once=config.batch, precision=config.precision)
        return with_head(head, _columns(scores, samples.corpus, batch, model.config), batch.clips)

    table, is_new = evaluate_into_table(
        out / PREDICTIONS,
        samples,
        model.config,
        columns_of,
        settings=settings,
        world=world,
        batch_size=max(1, config.batch // (config.num_clips * config.num_crops)),
        num_clips=config.num_clips,
        num_crops=config.num_crops,
        row_bytes=4 * model.config.num_classes,
        unit="sample",
        beside=(METRICS, CLASSES, CONFUSION, CONFUSION_PICTURE),
    )
    if not world.is_first:
        return ""
    metrics = summarise(pq.read_table(table.path, columns=["labels", "scores"]), model.config, out)
    facts = {"run": config.run, **views}
    write_text(out / METRICS, json.dumps(facts | metrics | {"settings": table.settings}, indent=1) + "\n")
    report = _report(metrics, model.config, views=f"{config.num_clips} x {config.num_crops}")
    return f"{report}\n{describe_end(out, is_new=is_new)}"


def _number_labels(samples: "EvalSet", model_config: "ClassifierConfig") -> None:
    """Give the dataset's labels the model's numbers, and check them; a dataset without any label is left as it is."""
    from pipelines.samples.corpus import check_labels
    from pipelines.samples.labels import numbered_as

    corpus, rows = samples.corpus, samples.rows
    if not len(corpus.labels.values):
        return
    corpus.labels = numbered_as(corpus.labels, model_config.class_names, rows=rows)
    labelled = rows[corpus.labels.per_sample[rows] > 0]
    check_labels(
        corpus,
        labelled,
        num_classes=model_config.num_classes,
        multi_label=model_config.multi_label,
    )


def _check_size(samples: int, classes: int) -> None:
    """Refuse, before any clip is read, an evaluation whose figures would not fit into memory."""
    require_memory(
        BYTES_A_SCORE * samples * classes,
        f"scores of {samples:,} samples and {classes:,} classes",
        "evaluate in parts, with --data.select.names FILE",
    )


def scores_of(model: "Classifier", batch: "Batch", *, at_once: int, precision: str) -> np.ndarray:
    """Return (B, classes) float32: probabilities averaged over the views of each sample.

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


def _columns(
    scores: np.ndarray, corpus: "Corpus", batch: "Batch", model_config: "ClassifierConfig"
) -> "dict[str, pa.Array]":
    """Return the columns of a batch: prediction, its name and score, whether it is right, all scores."""
    import pyarrow as pa

    from mae3d.analysis.scores import hits_at

    labels = [corpus.labels_of(row) for row in batch.rows[:, 0].tolist()]
    best = scores.argmax(axis=1)
    names = _class_names(model_config)
    columns: dict[str, pa.Array] = {
        "prediction": pa.array(best, pa.int32()),
        "prediction_name": pa.array([names[number] for number in best.tolist()], pa.string()),
        "score": pa.array(scores[np.arange(len(best)), best], pa.float32()),
        "correct": pa.array(
            [guess in true if true else None for guess, true in zip(best.tolist(), labels, strict=True)], pa.bool_()
        ),
    }
    if not model_config.multi_label:
        first = np.array([true[0] if true else 0 for true in labels], dtype=np.int64)
        hits = [hit if true else None for hit, true in zip(hits_at(scores, first, k=TOP).tolist(), labels, strict=True)]
        columns["hit5"] = pa.array(hits, pa.bool_())
    offsets = np.arange(len(scores) + 1, dtype=np.int32) * scores.shape[1]
    columns["scores"] = pa.ListArray.from_arrays(offsets, pa.array(scores.ravel(), pa.float32()))
    return columns


def summarise(table: "pa.Table", model_config: "ClassifierConfig", out: Path) -> dict[str, Any]:
    """Return the figures of the samples that were read and have labels; write classes.csv and a confusion matrix.

    A sample without a label is left out; for a multi-label model it counts as one of no class, as in finetuning, unless
    no sample has any.

    Args:
        table: columns labels and scores of predictions.parquet.
        model_config: the classifier's.
        out: the folder.
    """
    import pyarrow.compute as pc

    from mae3d.analysis.scores import average_precisions
    from pipelines.samples.labels import many_hot

    read = table.filter(table["scores"].is_valid())
    labels = read["labels"].to_pylist()
    none_is_a_label = model_config.multi_label and any(labels)
    scored = read.filter([bool(true) or none_is_a_label for true in labels])
    counts = {
        "samples": len(table),
        "failed": len(table) - len(read),
        "unlabelled": len(read) - len(scored),
        "scored": len(scored),
    }
    if not len(scored):
        return counts
    flat: Any = pc.list_flatten(scored["scores"])
    scores = flat.to_numpy().reshape(-1, model_config.num_classes)
    labels_of_scored: list[Any] = scored["labels"].to_pylist()
    if model_config.multi_label:
        targets = many_hot(labels_of_scored, model_config.num_classes)
        metrics, classes = _multi_label_figures(scores, targets, model_config)
    else:
        targets = np.array([true[0] for true in labels_of_scored], dtype=np.int64)
        metrics, classes = _single_label_figures(scores, targets, model_config, out)
    precisions = [None if math.isnan(value) else value for value in average_precisions(scores, targets).tolist()]
    classes["average_precision"] = precisions
    metrics["map"] = float(np.mean([value for value in precisions if value is not None]))
    write_csv(out / CLASSES, classes)
    return counts | metrics


def _multi_label_figures(
    scores: np.ndarray, targets: np.ndarray, model_config: "ClassifierConfig"
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the figures, and columns by class."""
    from mae3d.analysis.scores import summary

    numbers = list(range(model_config.num_classes))
    classes = {"class": numbers, "name": _class_names(model_config), "samples": targets.sum(axis=0).tolist()}
    return dict(summary(scores, targets)), classes


def _class_names(model_config: "ClassifierConfig") -> list[str]:
    """Return the classes' names by number; the numbers if they have none."""
    return list(model_config.class_names) or [str(number) for number in range(model_config.num_classes)]


def _single_label_figures(
    scores: np.ndarray, targets: np.ndarray, model_config: "ClassifierConfig", out: Path
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the figures, and columns by class; write the confusion matrix, or its pairs if the classes are many."""
    from mae3d.analysis.scores import class_table, confused, confusion, summary
    from mae3d.tracking.plots import plot_confusion

    names = list(model_config.class_names) or None
    metrics: dict[str, Any] = dict(summary(scores, targets))
    # the binomial distribution's, of a share of N samples
    metrics["top1_standard_error"] = (metrics["top1"] * (1 - metrics["top1"]) / len(scores)) ** 0.5
    classes = class_table(scores, targets, names=names, k=TOP)
    metrics["mean_class_top1"] = float(np.mean([share for share in classes["top1"] if share is not None]))
    if model_config.num_classes > MAX_MATRIX:
        true, predicted, counts = (values.tolist() for values in confused(scores, targets))
        pairs = {"true": [classes["name"][i] for i in true], "predicted": [classes["name"][i] for i in predicted]}
        write_csv(out / CONFUSION, pairs | {"samples": counts})
        return metrics, classes
    matrix = confusion(scores, targets)
    by_class = zip(classes["name"], matrix.tolist(), strict=True)
    write_rows(out / CONFUSION, [["true \\ predicted", *classes["name"]], *([name, *row] for name, row in by_class)])
    plot_confusion(matrix, out / CONFUSION_PICTURE, names=names)
    return metrics, classes


def _report(metrics: Mapping[str, Any], model_config: "ClassifierConfig", *, views: str) -> str:
    lines = {"samples": f"{metrics['scored']:,} of {metrics['samples']:,} scored, {views} views each"}
    if metrics["unlabelled"]:
        lines["samples"] += f"; {metrics['unlabelled']:,} have no label: predicted, not scored"
    if metrics["failed"]:
        lines["samples"] += f"; {metrics['failed']:,} could not be read: null in {PREDICTIONS}"
    if metrics["scored"]:
        figures = [f"mAP {metrics['map']:.2%}", f"loss {metrics['loss']:.4f}"]
        if not model_config.multi_label:
            top5 = [f"top-5 {metrics['top5']:.2%}"] if model_config.num_classes > TOP else []
            error = f"(standard error {metrics['top1_standard_error']:.2%})"
            figures = [f"top-1 {metrics['top1']:.2%} {error}", *top5, *figures]
            lines["classes"] = f"{model_config.num_classes}, mean of their top-1 {metrics['mean_class_top1']:.2%}"
        lines["result"] = ", ".join(figures)
    return "\n".join(f"{name + ':':9}{text}" for name, text in lines.items())
