"""The commands of `mae3d`, in the groups that its help shows.

COMMANDS["train"]["pretrain"].module     # "launch.pretrain", whose main(argv) returns the exit code
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: Its `main(argv)` returns the exit code.
        summary: A line on it.
        config: The dataclass of its settings, if it takes recipes: `module:name`.
        has_ranks: Whether `mae3d launch` may start it as several processes.
    """

    module: str
    summary: str
    config: str = ""
    has_ranks: bool = False


COMMANDS: dict[str, dict[str, Command]] = {
    "data": {
        "preprocess": Command("preprocess.__main__", "media to shards: build, append, merge, split, verify, report, …"),
        "preview": Command(
            "launch.preview", "the batches that a trainer sees, as pictures", "launch.preview:PreviewConfig"
        ),
    },
    "train": {
        "pretrain": Command(
            "launch.pretrain", "shards to a masked autoencoder", "launch.training.config:PretrainConfig", True
        ),
        "finetune": Command(
            "launch.finetune", "a model and labels to a classifier", "launch.training.config:FinetuneConfig", True
        ),
        "launch": Command("launch.start", "a command as many processes: one host, several, SLURM"),
        "recipes": Command("launch.recipe_list", "the recipes for --config, with their sources and expected figures"),
    },
    "measure": {
        "evaluate": Command(
            "launch.evaluate", "accuracy, or reconstruction losses", "launch.inference.settings:EvaluateConfig", True
        ),
        "probe": Command("launch.probe", "kNN, linear and attentive probes", "launch.probe:ProbeConfig", True),
        "compare": Command(
            "launch.compare", "a run beside image models and no training", "launch.compare:CompareConfig", True
        ),
    },
    "use": {
        "embed": Command("launch.embed", "vectors of clips, as a Parquet table", "launch.embed:EmbedConfig", True),
        "search": Command(
            "launch.search", "moments of an embedded archive that are like one", "launch.search:SearchConfig"
        ),
        "timeline": Command(
            "launch.timeline",
            "scores along hours of video, as a page",
            "launch.inference.settings:TimelineConfig",
            True,
        ),
        "propagate": Command(
            "launch.propagate", "the first frame's mask through a video", "launch.propagate:PropagateConfig", True
        ),
        "visualize": Command(
            "launch.visualize", "reconstructions, attention, neighbours, as a page", "launch.visualize:VisualizeConfig"
        ),
        "export": Command("launch.export", "a folder to give away, also in other projects' formats"),
        "push": Command("launch.push", "a model to the Hugging Face Hub"),
    },
    "runs": {
        "runs": Command("launch.runs", "a table of runs, and a page that refreshes itself"),
        "metrics": Command("mae3d.metrics", "curves and a summary of a run"),
        "checkpoint": Command("mae3d.checkpoint", "which checkpoints of a run are whole"),
    },
    "this machine": {
        "doctor": Command("launch.doctor", "what works here, and what to do about the rest"),
        "completion": Command("launch.completion", "completion for bash and zsh"),
        "schema": Command("launch.schema", "the JSON schema of the recipes, for editors"),
    },
}
ALL = {name: command for group in COMMANDS.values() for name, command in group.items()}
