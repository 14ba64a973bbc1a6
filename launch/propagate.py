"""A frozen encoder and the mask of a video's first frame ─► a mask for every frame, and how well they fit known ones.

python launch/propagate.py --run RUN --frames match.mp4 --masks first.png --out DIR
python launch/propagate.py --run RUN --frames frames --masks annotated --size 448 --out DIR
torchrun --nproc-per-node 8 -- launch/propagate.py --run RUN --frames DAVIS --masks DAVIS \\
    --listed DAVIS/ImageSets/2017/val.txt --out DIR
python launch/propagate.py --encoder timm:vit_small_patch14_dinov2 --encoder_weights FILE --frames … --masks … --out DIR
python launch/propagate.py … --random_init true --out CONTROL           # the same model before any training

Label propagation as in Jabri et al. 2020 and DINO, J and F as on DAVIS 2017. Killed and started again, on any number of
ranks, it goes on with the videos that are missing, and ends with the same files.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, WAIT_MINUTES, joined, parse, set_threads
from launch.common.encoders import EncoderChoice, open_frozen
from launch.common.sole_writer import sole_writer
from launch.common.tables import aligned, columns_of, write_csv
from mae3d.io.bounds import FILLED, bounded, seeded
from mae3d.io.resume import dotted, free

if TYPE_CHECKING:
    from launch.inference.footage import Sequence as Footage
    from mae3d.distributed import World
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder

PAGE, SCORES, TABLE = "propagate.html", "scores.json", "scores.csv"
PRINTED = ("sequence", "object", "frames", "j", "f", "jf", "copy_j", "copy_f", "copy_jf")  # columns on the terminal


@dataclass(frozen=True)
class PropagateConfig(EncoderChoice):
    """Carry masks through videos.

    Attributes:
        frames: A folder of pictures in the natural order of their names, a video file, a folder of such folders, or a
            folder with DAVIS's JPEGImages.
        masks: A picture of the first frame with 0 for the background and k for object k (palette or grey), or colours;
            a folder of pictures named as their frames (by frame numbers from 0 for a video file), of which the first is
            carried and the others are compared with; or a folder of such folders, or one with DAVIS's Annotations.
        out: Folder for masks/, pictures, scores.csv, scores.json and propagate.html.
        listed: A text file with the names of the videos that take part, one per line; none = all that have masks.
        size: Size at which frames are looked at, a square's side or height and width, multiples of the patches';
            positions are interpolated.
            Twice the model's size gives masks that are twice as fine. 0 is the model's.
        layer: Number of blocks that are run; 0 is the patch embedding, -1 the last block.
        mode: A frame's features in a model of clips. `still`: of a clip that is as long as a token, the frame repeated;
            `slide`: of clips of consecutive frames, as in training, in which the frames of a token share its features.
        k: Patches of earlier frames whose labels are averaged.
        context: Latest frames that are looked at beside the first one.
        radius: Rows and columns of patches that a neighbour may be away; 0 is any distance.
        temperature: Of the softmax over the k cosines.
        count_last: Whether the last frame of a video is measured; DAVIS 2017 leaves it out, and the first always.
        random_init: Carry with the untrained model of the same settings instead: the control.
        seed: Of the untrained model.
        batch: Clips at a time.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    frames: str = field(metadata=FILLED)
    masks: str = field(metadata=FILLED)
    out: str = field(metadata=FILLED)
    listed: str = ""
    size: int | tuple[int, int] = bounded(0, least=0, most=1 << 16)
    layer: int = -1
    mode: Literal["still", "slide"] = "still"
    k: int = bounded(5, least=1, most=1 << 20)
    context: int = bounded(7, least=0, most=1 << 20)
    radius: int = bounded(12, least=0, most=1 << 16)
    temperature: float = bounded(0.1, above=0)
    count_last: bool = False
    random_init: bool = False
    seed: int = seeded()
    batch: int = bounded(free(8), least=1, most=1 << 20)
    device: str = free("auto", local=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(PropagateConfig, arguments, prog="propagate.py", description=str(__doc__))
    set_threads()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="carrying masks", what="masks"),
    ):
        results = propagate(config, world)
        if world.is_first:
            _report(results)
            print(Path(config.out) / PAGE)
        return EXIT_DONE


def propagate(config: PropagateConfig, world: "World") -> dict[str, Any]:
    """Carry the masks of all videos, each on one rank; rank 0 writes scores and page.

    Returns:
        The content of scores.json; empty on other ranks.

    Raises:
        ValueError: A setting, the model, a frame or a mask is wrong; the message gives the remedy.
        OSError: A file cannot be read or written.
    """
    from launch.inference.footage import find_sequences
    from launch.inference.propagation import carry, stored

    out = Path(config.out)
    encoder, model = _open(config, world)
    size = encoder.config.img_size
    settings = {"model": model, "size": size if isinstance(size, int) else list(size)}
    named = ("layer", "mode", "k", "context", "radius", "temperature", "count_last")
    settings |= {name: value for name, value in asdict(config).items() if name in named}
    sequences, notes = world.on_first(lambda: find_sequences(Path(config.frames), Path(config.masks), config.listed))
    digests = world.on_first(lambda: _claim(out, sequences, settings))
    missing = [sequence for sequence in sequences if stored(out, sequence.name) is None]
    for sequence in missing[world.ranks.rank :: world.ranks.size]:
        carry(sequence, encoder, settings, out, inputs=digests[sequence.name], batch=config.batch)
        print(f"{sequence.name}: {len(sequence.frames) - sequence.start:,} frames", file=sys.stderr, flush=True)
    world.barrier()
    return _write_results(out, sequences, settings, notes) if world.is_first else {}


def _open(config: PropagateConfig, world: "World") -> "tuple[Encoder | FrameEncoder, str]":
    """Return the encoder at the requested size, on the rank's device, and the name of its weights for the results."""
    from launch.inference.probe_sets import untrained
    from mae3d.analysis.features import layer_of
    from mae3d.video.clip import check_video_channels
    from mae3d.weights.resize import resized_encoder

    encoder, model, _ = open_frozen(config, world, seed=config.seed)
    layer_of(encoder, config.layer)
    if config.random_init:
        encoder, model = untrained(encoder, config.seed), f"untrained, seed {config.seed}"
    usual = encoder.config
    check_video_channels(usual.in_chans)
    length = usual.t_patch_size if config.mode == "still" else usual.num_frames
    resized = resized_encoder(encoder, img_size=config.size or usual.img_size, num_frames=length)
    return resized.to(world.device).eval(), model


def _claim(out: Path, sequences: "list[Footage]", settings: dict[str, Any]) -> dict[str, str]:
    """Refuse a folder with other files or other settings, mark it as ours, and return the videos' digests by name.

    The page comes first because it marks the files beside it as this program's.
    """
    from launch.inference.propagation import MASKS, stored
    from mae3d.io.files import write_text
    from mae3d.io.html import page, paragraph, refuse_other_page

    digests = {}
    for sequence in sequences:
        digests[sequence.name] = sequence.digest()
        done = stored(out, sequence.name)
        now = dotted({"settings": settings, "inputs": digests[sequence.name]})
        before = dotted({name: done[name] for name in ("settings", "inputs")}) if done else now
        if changes := [
            f"{name} was {before.get(name)} and is {now[name]}" for name in now if before.get(name) != now[name]
        ]:
            raise ValueError(f"{out}, {sequence.name}: {'; '.join(changes)}. Give another --out, or delete this one")
    refuse_other_page(out / PAGE)
    if not (out / PAGE).exists():
        if foreign := [name for name in (MASKS, SCORES, TABLE) if (out / name).exists()]:
            raise ValueError(f"{out / foreign[0]}: there, and no {PAGE} beside it: give another --out, or move it")
        write_text(out / PAGE, page("Unfinished", [paragraph("The masks are not finished.")]))
    return digests


def _write_results(out: Path, sequences: "list[Footage]", settings: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Write the scores of all videos and the page; return the content of scores.json."""
    from launch.inference.propagation import means, stored
    from launch.report.masks import write_page
    from mae3d.io.files import write_text

    videos = {sequence.name: stored(out, sequence.name) or {} for sequence in sequences}
    rows = [{"sequence": name} | row for name, video in videos.items() for row in video["objects"]]
    notes = notes + [f"{name}: {note}" for name, video in videos.items() for note in video["notes"]]
    overall = means(rows)
    results = {"settings": settings, "means": overall, "objects": rows, "notes": notes}
    write_csv(out / TABLE, columns_of([*rows, *([{"sequence": "mean", **overall}] if overall else [])]))
    write_text(out / SCORES, json.dumps(results, indent=1) + "\n")
    write_page(out / PAGE, results, list(videos))
    return results


def _report(results: dict[str, Any]) -> None:
    rows = [*results["objects"], {"sequence": "mean"} | results["means"]]
    for note in results["notes"]:
        print(note, file=sys.stderr)
    if results["means"]:
        print(*aligned(columns_of([{name: row.get(name) for name in PRINTED} for row in rows])), sep="\n")


if __name__ == "__main__":
    raise SystemExit(main())
