"""A run ─► a model on the Hugging Face Hub: safetensors, config.json and a card with a picture, as one commit.

mae3d push RUN org/name                       # mae3d.load_model("org/name") opens it anywhere
mae3d push RUN org/name --private
mae3d push RUN org/name --dry_run             # say what would be uploaded, and stop

Nothing of the data is uploaded: the picture shows a rendered clip, unless another is given.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_IO, examples_of, fail
from launch.export import FORMATS, export
from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_help
from mae3d.weights.card import OWN, PICTURE, read_facts, write_card

if TYPE_CHECKING:
    from mae3d.model.mae import MAE

NO_PICTURE = "none"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="mae3d push", allow_abbrev=False, add_help=False)
    doc = str(__doc__)
    add_help(parser, examples=examples_of(doc)[:3], description=doc.partition("\n\n")[0])
    parser.add_argument("run", help="as for `mae3d export`: a run, a checkpoint, a model file, an exported folder")
    parser.add_argument("repo", help="ORG/NAME on the Hub; it is made if it does not exist")
    parser.add_argument("--private", action="store_true", help="a new repository is for its members only")
    parser.add_argument("--revision", default="", help="the branch that gets the commit; it is made if need be (main)")
    parser.add_argument("--licence", default="", help="what the card says of it; default: what is known of the weights")
    parser.add_argument("--format", choices=FORMATS, default=OWN, help="whose names the weights get (default: ours)")
    parser.add_argument(
        "--picture",
        default="",
        help="a PNG for the card; `none` for no picture; default: reconstructions of a rendered clip, no data of yours",
    )
    parser.add_argument("--message", default="", help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="say what would be uploaded, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    tolerate_any_text()
    options = parser().parse_args(argv)
    try:
        where = push(options)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), EXIT_IO)
    print(where)
    return 0


def push(options: argparse.Namespace) -> str:
    """Export into a folder aside, draw the picture, and upload all of it as one commit; return what was done.

    Raises:
        ValueError: There is no model, the name has another form, or the Hub refuses.
        OSError: A file cannot be written, or the Hub cannot be reached.
    """
    from mae3d.weights.push import check_repo, push_folder

    check_repo(options.repo)
    picture = Path(options.picture)
    if options.picture not in ("", NO_PICTURE) and picture.read_bytes()[:4] != b"\x89PNG":
        raise ValueError(f"--picture {picture}: is no PNG")
    with tempfile.TemporaryDirectory(prefix="mae3d-push-") as aside:
        folder = export(options.run, Path(aside) / "model", format=options.format, licence=options.licence)
        if options.picture not in ("", NO_PICTURE):
            shutil.copyfile(picture, folder / PICTURE)
        elif not options.picture:
            draw_preview(folder)
        write_card(read_facts(folder), folder)
        listed = "".join(f"\n  {path.name} {path.stat().st_size:,} bytes" for path in sorted(folder.iterdir()))
        if options.dry_run:
            private = "private " if options.private else ""
            return f"nothing uploaded; {options.repo} would get, as a {private}repository if it is new:{listed}"
        message = options.message or f"Upload {read_facts(folder)['made_by']}'s {options.format} weights"
        url = push_folder(folder, options.repo, private=options.private, revision=options.revision, message=message)
    return f"pushed: {url}{listed}"


def draw_preview(folder: Path) -> None:
    """Draw what an exported autoencoder of three colours fills into a rendered clip; others have no picture."""
    from mae3d.model.mae import MAE
    from mae3d.weights.files import open_model

    facts = read_facts(folder)
    if facts["kind"] != "MAE" or facts["model"].get("in_chans", 3) != 3:
        return
    model = open_model(folder)
    assert isinstance(model, MAE)
    preview(model, folder / PICTURE)


def preview(model: "MAE", path: Path) -> None:
    """Write a filmstrip of a rendered clip: the original, the masked one, and the one that the model has filled in."""
    import numpy as np
    import torch

    from launch.report.reconstruction import FILLED
    from mae3d.analysis.reconstruct import reconstruct
    from mae3d.io.contact_sheet import filmstrip
    from mae3d.model.masking import mask_noise
    from preprocess.demo.camera import camera_path
    from preprocess.demo.clips import render_clip
    from preprocess.demo.objects import SHAPES, object_drawer
    from preprocess.demo.pictures import draw_waves, period_of

    config, rng = model.config, np.random.default_rng(0)
    height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
    waves = draw_waves(rng)
    camera = camera_path("zoom_in", frames=config.num_frames, period=period_of(waves), turned=False, rng=rng)
    pictures = render_clip(waves, camera, object_drawer(SHAPES), size=max(height, width), rng=rng)
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    clip = np.stack([np.asarray(picture) for picture in pictures])[:, top : top + height, left : left + width]
    noise = mask_noise(seed=0, epoch=0, positions=[0], views=1, tokens=config.num_tokens)
    result = reconstruct(model, torch.tensor(clip)[None], noise)
    rows = {
        "a rendered clip": result.original[0],
        f"{result.hidden.mean():.0%} hidden": result.masked[0],
        FILLED: result.pasted[0],
    }
    filmstrip(rows).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
