"""A small labelled dataset that needs no download: frame folders and a ledger.

    render_demo(Path("out/demo/frames"), clips=240, size=64, frames=24, seed=0)
    # out/demo/frames/train/clip_0000/img_00001.jpg ...; out/demo/frames/ledger.csv: clip_0000 1 24 zoom_in

Soft waves of colour, photographs or drawn pictures, seen through a camera that moves, zooms or turns, with two objects
drifting over them. The label is the camera's motion, and no frame alone gives it away: picture and objects are drawn in
the same way for every label (camera.py has the rest). Waves and shapes are drawn anew for every clip.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mae3d.io.bounds import SEED, Bounds, check_number
from mae3d.io.files import TEMPORARY_PREFIX
from preprocess.demo.camera import DEFAULT_MOTIONS, MOTIONS, TURNS, camera_path
from preprocess.demo.objects import OBJECTS, SHAPES, Drifting, object_drawer
from preprocess.demo.pictures import TEXTURES, WAVES, Texture, draw_waves, load_pictures, look, period_of
from preprocess.encode.images import encode_jpeg

_QUALITY = 90


def render_demo(
    out: Path,
    *,
    clips: int,
    size: int,
    frames: int,
    seed: int,
    motions: Sequence[str] = DEFAULT_MOTIONS,
    textures: Sequence[str] = (WAVES,),
    objects: str = SHAPES,
    lossless: bool = False,
) -> None:
    """Render the dataset; the same arguments give the same bytes.

    Args:
        out: the folder that gets train/ and ledger.csv.
        clips: number of clips; labels are as even as they can be.
        size: height and width of a frame in pixels.
        frames: number of frames per clip.
        seed: decides everything that is drawn, the pictures of "noise" and "shapes" included.
        motions: the labels, of MOTIONS.
        textures: what the camera sees, of TEXTURES; a drawn kind brings 8 pictures, and all pictures are as likely.
        objects: what drifts over it, of OBJECTS.
        lossless: writes PNGs instead of JPEGs.

    Raises:
        ValueError: a number is out of range, a name is unknown or given twice, or `out` has a ledger already.
    """
    check_number("clips", clips, Bounds(least=1))
    check_number("size", size, Bounds(least=16, most=1 << 16))
    check_number("frames", frames, Bounds(least=2))
    check_number("seed", seed, SEED)
    _check_names("motion", motions, MOTIONS)
    _check_names("texture", textures, TEXTURES)
    _check_names("object", [objects], OBJECTS)
    ledger, unfinished = out / "ledger.csv", out / f"{TEMPORARY_PREFIX}demo"
    if ledger.exists():
        raise ValueError(f"{ledger} exists; remove it or give another --out")
    if (out / "train").exists() and not unfinished.exists():
        raise ValueError(f"{out / 'train'} exists, and no unfinished demo has made it; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    pictures, draw_objects = load_pictures(textures, seed=seed), object_drawer(objects)
    turned = any(motion in TURNS for motion in motions)
    order = np.random.default_rng([seed, 0]).permutation(clips)
    rows = []
    for clip in range(clips):
        motion = motions[order[clip] % len(motions)]
        name = f"clip_{clip:04d}"
        folder = out / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 1, clip])
        texture = pictures[rng.integers(len(pictures))] or draw_waves(rng)
        path = camera_path(motion, frames=frames, period=period_of(texture), turned=turned, rng=rng)
        rendered = render_clip(texture, path, draw_objects, size=size, rng=rng)
        for number, picture in enumerate(rendered, start=1):
            file = folder / f"img_{number:05d}"
            if lossless:
                picture.save(file.with_suffix(".png"))
            else:
                file.with_suffix(".jpg").write_bytes(encode_jpeg(picture, _QUALITY))
        rows.append(f"{name} 1 {frames} {motion}\n")
    ledger.write_text("".join(rows), encoding="ascii")
    unfinished.unlink()


def render_clip(
    texture: Texture,
    path: np.ndarray,
    draw_objects: Callable[..., list[Drifting]],
    *,
    size: int,
    rng: np.random.Generator,
) -> list[Image.Image]:
    """Return one clip: a picture of size x size per row of a camera's path, with objects that drift over it."""
    return _pictures(texture, path, draw_objects(size=size, rng=rng), size)


def render_scene(
    texture: Texture,
    path: np.ndarray,
    draw_objects: Callable[..., list[Drifting]],
    *,
    size: int,
    rng: np.random.Generator,
) -> tuple[list[Image.Image], np.ndarray]:
    """Return the clip that `render_clip` returns for the same arguments, and the objects that are seen in it.

    Returns:
        The pictures, and uint8 (frames, size, size): 0 for the camera's picture, else the number of the object, from 1,
        that covers at least half of the pixel; later objects lie in front.
    """
    drifting = draw_objects(size=size, rng=rng)
    ids = np.zeros((len(path), size, size), np.uint8)
    for frame in range(len(path)):
        for number, thing in enumerate(drifting, start=1):
            cover = Image.new("L", (size, size))
            thing.paste(cover, frame, colour=255)
            ids[frame][np.asarray(cover) >= 128] = number
    return _pictures(texture, path, drifting, size), ids


def _pictures(texture: Texture, path: np.ndarray, drifting: Sequence[Drifting], size: int) -> list[Image.Image]:
    pictures = []
    for frame, view in enumerate(path):
        picture = look(texture, view, size)
        for thing in drifting:
            thing.paste(picture, frame)
        pictures.append(picture)
    return pictures


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if not names or unknown or len(set(names)) < len(names):
        raise ValueError(f"{what}s {' '.join(names) or 'none'}: need different ones of {' '.join(known)}")
