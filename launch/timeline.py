"""A trained model and long videos ─► what it says about every second: a table, change points, a page to look at.

mae3d timeline --run FINE --videos operation.mp4 --out DIR --events phases.csv --smooth 10
mae3d timeline --encoder timm:vit_small_patch14_dinov2 --encoder_weights FILE --videos walk.mp4 --out DIR
mae3d launch -n 8 timeline --run RUN --videos day1.mp4 day2.mp4 --out DIR --every 0.5

A classifier gives the scores of its classes; a masked autoencoder surprise, the loss of predicting each clip's hidden
part (by default its future), beside the loss of copying the last visible frame; every model novelty, the distance to
the nearest earlier window, and change points. Killed and started again, on any number of ranks, it goes on where it
was.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, EXIT_ERROR, WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig, clips_config
from launch.common.encoders import open_frozen, open_run
from launch.common.sole_writer import sole_writer
from launch.inference.settings import TimelineConfig

if TYPE_CHECKING:
    from launch.inference.phases import Truth
    from launch.inference.timeline import Reader
    from mae3d.distributed import World


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 if a video cannot be read; SystemExit 2: usage, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(TimelineConfig, arguments, prog="mae3d timeline", description=str(__doc__))
    set_threads()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="timeline", what="timeline"),
    ):
        unreadable = timeline(config, world)
        for message in unreadable if world.is_first else ():
            print(f"error: {message}", file=sys.stderr)
        return EXIT_ERROR if unreadable else EXIT_DONE


def timeline(config: TimelineConfig, world: "World") -> list[str]:
    """Make the table on all ranks, and what follows from it on rank 0.

    Returns:
        Errors of the files that cannot be read, whose rows have no figures.

    Raises:
        ValueError: A setting, the model or the events are wrong; the message gives the remedy.
        OSError: A file cannot be written.
    """
    from launch.inference.embeddings import files_hash
    from launch.inference.phases import read_truth
    from launch.inference.timeline import Reader, open_any, read_windows
    from mae3d.io.progress import followed
    from mae3d.video.windows import plan_windows

    frozen = open_frozen(config, world) if config.encoder else open_run(config.run, world, open_file=open_any)
    reader = Reader(frozen.encoder, config, world.device)
    world.on_first(lambda: _check(config, reader))
    truth = world.on_first(lambda: read_truth(config, reader.class_names, overlapping=reader.is_multi_label))
    sampling = ClipsConfig(shards=config.videos, sampling_rate=config.sampling_rate, target_fps=config.target_fps)
    clips = clips_config(sampling, frozen.trained | {"sampling": "strided"})
    plan = world.on_first(
        lambda: plan_windows(
            followed(config.videos, "file", doing="frame times"),
            num_frames=reader.config.num_frames,
            step_s=clips.sampling_rate / clips.target_fps,
            every_s=config.every,
        )
    )
    settings = {
        "model": frozen.identity,
        "videos": world.on_first(lambda: files_hash(config.videos)),
        "data": {"sampling_rate": clips.sampling_rate, "target_fps": clips.target_fps},
        "every_s": config.every,
        **reader.settings,
    }
    read_windows(config, reader, plan, settings, world)
    if world.is_first:
        print(_finish(config, reader, truth))
    return list(plan.unreadable.values())


def _check(config: TimelineConfig, reader: "Reader") -> None:
    """Refuse files that are not there, and smoothing of classes that there are none of or that may hold together."""
    from launch.inference.phases import SHOWN

    missing = [video for video in config.videos if not Path(video).exists()]
    if missing:
        listed = ", ".join(missing[:SHOWN])
        raise ValueError(f"--videos: {len(missing)} files are not there: {listed}; give their paths")
    if config.smooth and (reader.is_multi_label or not reader.class_names):
        kind = "a multi-label classifier" if reader.is_multi_label else "no classifier"
        raise ValueError(
            f"--smooth {config.smooth}: {config.run or config.encoder} is {kind}, and only classes that exclude one "
            "another are smoothed; leave it out"
        )


def _finish(config: TimelineConfig, reader: "Reader", truth: "Truth | None") -> str:
    """Write all that follows from windows.parquet; return the report to print."""
    from launch.common.tables import aligned, columns_of
    from launch.inference.phases import SHOWN, judge
    from launch.inference.timeline import PAGE, WINDOWS, pictures_of, tracks_of, write_tables
    from launch.report.timeline_page import write_page
    from launch.report.timeline_plots import write_pictures

    out = Path(config.out)
    tracks = tracks_of(config, out / WINDOWS)
    agreement = judge(config, reader.class_names, truth, tracks, out, multi_label=reader.is_multi_label)
    write_tables(config, reader.class_names, tracks, out)
    write_pictures(tracks, reader.class_names, [out / name for name in pictures_of(config.videos)])
    write_page(tracks, reader.class_names, agreement, windows=out / WINDOWS, path=out / PAGE)
    lines = [line for rows in agreement for line in aligned(columns_of(rows))]
    if agreement and config.smooth == "auto" and sum(map(bool, truth.events.values() if truth else ())) < 2:
        lines.append("--smooth auto: nothing is smoothed, because no other file has events to choose on")
    if truth and truth.unmatched:
        names = f"{len(truth.unmatched):,} of its names are none of --videos: {', '.join(truth.unmatched[:SHOWN])}"
        lines.append(f"{config.events}: {names}")
    changes = sum(len(track.changes) for track in tracks)
    lines.append(f"{sum(len(track.start_s) for track in tracks):,} windows, {changes:,} change points: {out / PAGE}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
