"""A Task, its config and its shards ─► a trained model in RUN: the steps around the training loop, in their one order.

return run_training(config, train)                   # opens the shards and joins the ranks; an exit code
return run_task(PretrainTask, config, corpus, world)     # `train` of a command: finished?
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from launch.common.cli import EXIT_DONE, EXIT_STOPPED, fail, joined, set_threads
from launch.common.eval_set import SAME_DATA, EvalSet, sample_facts
from launch.common.sole_writer import Ownership, sole_writer
from launch.training.config import FinetuneConfig, PretrainConfig, TrainingConfig
from launch.training.lengths import Length, beyond_the_run
from launch.training.precision import agreed_precision
from launch.training.resumption import claim
from launch.training.schedule import describe_rate, make_schedule
from launch.training.summary import foreseen, report_end, report_finished, start_summary
from mae3d.io.collector import uncollected
from mae3d.io.console import lasting_output
from mae3d.io.resume import dotted, resume_rules

if TYPE_CHECKING:
    import torch

    from launch.common.decode import Decode
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import ClassifierConfig, MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import Validation
    from pipelines.loader import Loader
    from pipelines.samples.corpus import Corpus

SAME_INIT = "Make the same weights, and the same labels, reachable on every node"

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


class Evaluation(Protocol):
    """Held-out samples, opened and checked before any training; its text says how often they are scored."""

    @property
    def option(self) -> str:
        """The group of options that configures it: `eval` or `val`."""

    def facts(self) -> Mapping[str, str]:
        """Return what all ranks must have in common."""

    def validation(self, engine: "Engine") -> "Validation | None":
        """Return the hook of the training loop; None if the evaluation is off."""


class Task(Protocol):
    """A kind of training: its model, loss and evaluation. It is made once the run's folder is up to date.

    Attributes:
        model_config: The model's, complete.
        stored_config: The config that RUN/config.yaml keeps.
        lr_batch: Factors of the batch that optim.blr is scaled by.
        ema: Decay per step of the moving average of the weights; 0 for none.
        model_note: One clause about the model, for the summary.
        notes: Further lines of the summary by their heads.
    """

    @property
    def model_config(self) -> "MAEConfig | ClassifierConfig": ...
    @property
    def stored_config(self) -> TrainingConfig: ...
    @property
    def lr_batch(self) -> Sequence[int]: ...
    @property
    def ema(self) -> float: ...
    @property
    def model_note(self) -> str: ...
    @property
    def notes(self) -> Mapping[str, str]: ...

    def open_evaluation(self, loader: "Loader") -> Evaluation:
        """Check the training samples, and open those held out.

        Raises:
            ValueError: samples or labels do not fit the model, or held-out samples are trained on.
        """

    def build_model(self) -> "MAE | Classifier":
        """Return the model with its initial weights; random numbers come from torch's seeded generator."""

    def parameter_groups(self, model: Any) -> Iterable[Any]:
        """Return the trainable parameters, each group with weight_decay and lr_scale."""

    def loss(self) -> "Callable[..., torch.Tensor]":
        """Return `loss_of(engine, batch, step=, micro=)` ─► scalar loss."""


def run_training(config: Config, train: "Callable[[Config, Corpus, World], bool]") -> int:
    """Open the shards, join the ranks and train.

    Args:
        config: the settings.
        train: returns False after an agreed stop.

    Returns:
        The exit code.

    Raises:
        SystemExit: an error, which has been reported.
    """
    for option, value in (("--data.shards", config.data.shards), ("--run.dir", config.run.dir)):
        if not value:
            fail(
                f"{option} is missing: give the folder"
                + (" made by `mae3d preprocess build`" if "shards" in option else "")
            )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_threads()
    from pipelines.samples.corpus import corpus_of
    from preprocess.dataset.index import DatasetError

    try:  # before torch is loaded: a wrong path is reported within a second
        corpus = corpus_of(config.data)
    except DatasetError as error:
        fail(str(error))
    with lasting_output(), joined(config, where=config.run.dir, timeout_minutes=config.run.timeout) as world:
        return EXIT_DONE if train(config, corpus, world) else EXIT_STOPPED


def run_task(
    make_task: "Callable[[Config, Corpus, Run, World], Task]", config: Config, corpus: "Corpus", world: "World"
) -> bool:
    """Train to the last step or to an agreed stop; all ranks call it.

    The order of the steps is a contract, and this function alone holds it:

    1. lock: this start becomes the only writer of RUN and of run.remote, or is refused;
    2. restore: RUN comes back from run.remote if that is newer, before anything reads RUN;
    3. decode, task, precision, loader, schedule, evaluation, observers: all that can
       be refused is, before RUN is touched;
    4. claim: RUN/config.yaml is compared and written;
    5. finished: a run that is DONE ends here;
    6. seed, then model: the seed comes right before the weights, so that they are the same however step 3 went;
    7. summary, engine, `TrainingLoop`, which resumes from the newest checkpoint.

    A dry run takes the same steps, without those that write: the lock, the restoration, and the second half of step 4.
    It ends with the summary.

    Args:
        make_task: config, corpus, run, world ─► the task; opens the initial weights unless a checkpoint replaces them.
        config: the settings.
        corpus: the training datasets.
        world: all ranks.

    Returns:
        True at the last step, now or before, and after a dry run; False after an agreed stop.

    Raises:
        ValueError: a setting, the weights, the data or the run's folder is wrong; the message gives the remedy.
        TrainingError: the loss is not finite.
        DataError: too much of the data is damaged.
        OSError: a checkpoint or the log cannot be written.
    """
    if config.dry_run:
        return _train_alone(make_task, config, corpus, world, Ownership())
    with sole_writer(Path(config.run.dir), world, job="training", remote=config.run.remote) as ownership:
        return _train_alone(make_task, config, corpus, world, ownership)


def _train_alone(
    make_task: "Callable[[Config, Corpus, Run, World], Task]",
    config: Config,
    corpus: "Corpus",
    world: "World",
    ownership: Ownership,
) -> bool:
    """Take the steps of `run_task` from the second on."""
    import torch

    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import TrainingLoop
    from mae3d.training.metrics import step_flops
    from mae3d.training.observers import Observers

    if not config.dry_run:
        restore_from_remote(config, world)
    run = Run(config.run.dir, resume_rules(config))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, decode=agreed_decode(config, corpus, run, world))
    )
    task = make_task(config, corpus, run, world)
    model_config = task.model_config
    config = dataclasses.replace(config, train=agreed_precision(config.train, model_config, run, world))
    stored_config = dataclasses.replace(task.stored_config, train=config.train)
    world.check_same(dotted({"model": dataclasses.asdict(model_config)}), SAME_INIT)
    with world.closing(make_loader(config, corpus, world, model_config=model_config)) as loader:
        schedule = make_schedule(config, loader, lr_batch=task.lr_batch, flops_per_clip=step_flops(model_config))
        evaluation = task.open_evaluation(loader)
        world.check_same(evaluation.facts(), SAME_DATA)
        observers = Observers(world, seed=config.train.seed, metrics=config.log.metrics, callbacks=config.run.callbacks)
        change = claim(run, stored_config, loader, schedule, world, model_config=model_config)
        if run.is_done and not (config.dry_run and config.extend):
            report_finished(run, world)
            return True
        torch.manual_seed(config.train.seed)
        model = task.build_model()
        model.set_grad_checkpointing(config.train.grad_checkpointing)
        if world.is_first:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            rate = describe_rate(config.optim, task.lr_batch)
            lines = start_summary(
                config,
                corpus,
                loader,
                schedule,
                world,
                model_config,
                parameters=parameters,
                model_note=task.model_note,
                rate=rate,
            )
            length = Length(schedule.total_steps, loader.steps_per_epoch, config.train.global_batch)
            if warnings := beyond_the_run(config, length):
                lines["warning"] = f"\n{'':9}".join(warnings)
            if schedule.hooks:
                lines["hooks"] = ", ".join(f"{text} ({code})" for text, code in schedule.hooks.items())
            lines |= {**task.notes, evaluation.option: str(evaluation)} | ({"change": change} if change else {})
            if config.dry_run:
                lines |= foreseen(run, config, schedule)
            print(*(f"{name + ':':9}{text}" for name, text in lines.items()), sep="\n", flush=True)
        if config.dry_run:
            return True
        engine = Engine(
            model,
            list(task.parameter_groups(model)),
            train=config.train,
            optim=config.optim,
            micro_batch=loader.micro_batch,
            world=world,
            ema=task.ema,
        )
        with world.closing(engine):
            validation = evaluation.validation(engine)
            finished = TrainingLoop(
                engine, loader, task.loss(), schedule, run, world, model_config, validation, ownership, observers
            ).run()
    report_end(run, world, finished=finished)
    return finished


def restore_from_remote(config: TrainingConfig, world: "World") -> None:
    """Bring the run back from run.remote if it is newer there; must come before anything reads the run's folder.

    Rank 0 does it, for all: run.dir is on storage that they share.

    Raises:
        ValueError: the copy is damaged, or of another run.
        OSError: the URL cannot be read, and the folder has no checkpoint.
    """
    if not config.run.remote:
        return
    from mae3d.checkpoints import mirror

    folder, rules = Path(config.run.dir), resume_rules(config)
    message = world.on_first(lambda: mirror.restore(folder, config.run.remote, rules))
    if message and world.is_first:
        print(message, flush=True)


def agreed_decode(config: TrainingConfig, corpus: "Corpus", run: "Run", world: "World") -> "Decode":
    """Return `data.decode` as config.yaml will keep it, the same on all ranks."""
    from launch.common.decode import choose_decode

    stored = world.share(run.stored().get("data", {}).get("decode") if world.is_first else None)
    decode, note = choose_decode(config.data.decode, stored=stored, world=world, layouts=corpus.layouts)
    if note and world.is_first:
        print(f"decode: {note}", flush=True)
    return decode


@uncollected()
def make_loader(
    config: TrainingConfig, corpus: "Corpus", world: "World", *, model_config: "MAEConfig | ClassifierConfig"
) -> "Loader":
    """Return the training clips of this rank; all ranks have opened the same data.

    Raises:
        ValueError: the loader refuses its settings; or a rank sees other data than rank 0 (a node without a shard),
            whose order would differ (DisagreementError).
    """
    from pipelines.loader import Loader

    loader = Loader(
        corpus,
        config.data,
        num_frames=model_config.num_frames,
        size=model_config.img_size,
        channels=model_config.in_chans,
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        rank=world.ranks.rank,
        world=world.ranks.size,
        local_world=world.ranks.local_size,
        accumulation=config.train.accumulation,
        device=world.device,
    )
    check_same_data(loader, EvalSet(corpus, config.data, loader.rows), world)
    return loader


def check_same_data(loader: "Loader", samples: EvalSet, world: "World") -> None:
    """Raise ValueError on all ranks if any two would deal out other samples, labels, frames or crops."""
    facts = dict(loader.state_dict()["fingerprint"])
    for number, dataset in enumerate(facts.pop("datasets"), 1):  # wherever each rank has found it
        facts[f"dataset {number}"] = "{samples:,} samples in {shards:,} shards ({content})".format(**dataset)
    world.check_same(facts | sample_facts(samples, "data"), SAME_DATA)
