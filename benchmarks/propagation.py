"""The value of pretraining for carrying masks: rendered scenes whose objects are known, three seeds.

    python benchmarks/propagation.py out/propagation        # half an hour on two CPU cores; started again it goes on

Turning shapes, cut out of pictures, drift over pictures that a moving camera sees: colours alone do not give an object
away, and from one frame to the next it moves by a patch or more. Small models are trained from scratch, with three
seeds, on clips of a photograph, drawn noise and shapes; the masks of other scenes, of another photograph, are carried
by their features, by those of the same models untrained, and by copying the first mask. Prints J, F and their mean.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import build
from benchmarks.motion import run, spread
from mae3d.io.label_maps import write_ids
from preprocess.demo.camera import MOTIONS, camera_path
from preprocess.demo.clips import render_scene
from preprocess.demo.objects import Drifting, Shape, object_drawer
from preprocess.demo.pictures import Texture, load_pictures, look, period_of

SEEDS = (0, 1, 2)
STRIDE = 3  # of the demo's frames: the motion from one frame of a scene to the next
SIDE = 128  # of a frame, pixels
TRAIN: dict[str, Any] = {"scenes": 240, "frames": 16, "seed": 0, "textures": ("china", "noise", "shapes")}
TEST: dict[str, Any] = {"scenes": 12, "frames": 24, "seed": 2, "textures": ("flower",)}
TRAINING = {
    "model.mask_ratio": "0.8",
    "data.sampling_rate": "1",
    "data.area": "0.06 0.4",  # patches of 4 to 10 of the frames' pixels
    "train.steps": "1400",
    "run.checkpoint_every": "700",
}
LOOK = ("--size", "192")  # one and a half times the frames' side: patches of 5 x 5 of their pixels
CANDIDATES: dict[str, tuple[str, ...]] = {
    "trained": LOOK,
    "untrained": (*LOOK, "--random_init", "true"),
    "trained, patches alone": (*LOOK, "--layer", "0"),
    "trained, clips of consecutive frames": (*LOOK, "--mode", "slide"),
}
_VIEW = (160.0, 280.0)  # side of the view that an object is cut out of, in pixels of its picture


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out, device = options.out.resolve(), options.device
    out.mkdir(parents=True, exist_ok=True)
    train, test = render(out / "train", **TRAIN), render(out / "test", **TEST)
    if not (out / "shards" / "dataset.json").exists():
        frames = train / "JPEGImages" / f"{SIDE}p"
        build(out / "shards", "--frames", frames, "--ledger", train / "ledger.csv", "--source-fps", 30)
    means: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    for seed in SEEDS:
        model = out / f"run-{seed}"
        training = [value for pair in TRAINING.items() for value in (f"--{pair[0]}", pair[1])]
        data = ["--data.shards", out / "shards", "--run.dir", model, "--train.seed", seed]
        run("pretrain.py", "--config", "demo", *data, *training, "--device", device)
        for name, more in CANDIDATES.items():
            folder = out / f"{name}-{seed}".replace(",", "").replace(" ", "-")
            given = ["--frames", test, "--masks", test, "--out", folder, "--seed", seed, "--device", device]
            run("propagate.py", "--run", model, *given, *more)
            means[name].append(json.loads((folder / "scores.json").read_text())["means"])
    copied = means["trained"][0]
    print(f"first mask repeated: J {copied['copy_j']:.1%}, F {copied['copy_f']:.1%}, J&F {copied['copy_jf']:.1%}")
    for name, seeds in means.items():
        figures = {shown: spread([one[key] for one in seeds]) for shown, key in (("J", "j"), ("F", "f"), ("J&F", "jf"))}
        print(f"{name}: " + "; ".join(f"{shown} {figure}" for shown, figure in figures.items()))


@dataclass(frozen=True)
class Cutout:
    """A piece of a picture in the outline of a shape, with which it moves and turns.

    Attributes:
        shape: the outline and its motion.
        texture: the picture.
        point: x and y of the picture's pixel under the shape's centre.
        side: pixels of the picture along a frame's side.
    """

    shape: Shape
    texture: Texture
    point: np.ndarray
    side: float

    def paste(self, picture: Image.Image, frame: int, *, colour: int | None = None) -> None:
        """Draw the piece at its place in this frame, or its outline in one colour."""
        if colour is not None:
            self.shape.paste(picture, frame, colour=colour)
            return
        cover = Image.new("L", picture.size)
        self.shape.paste(cover, frame, colour=255)
        angle = -(self.shape.angle + self.shape.spin * frame)
        right, down = (self.shape.centre(frame) - 0.5) * self.side
        cosine, sine = math.cos(angle), math.sin(angle)
        centre = self.point - np.array([cosine * right - sine * down, sine * right + cosine * down])
        picture.paste(look(self.texture, np.array([*centre, self.side, angle]), picture.width), (0, 0), cover)


def cutouts(pictures: Sequence[Texture]) -> Callable[..., list[Drifting]]:
    """Return a function (size, rng) that draws the objects of one scene, as `object_drawer` does."""
    draw = object_drawer("shapes")

    def draw_objects(*, size: int, rng: np.random.Generator) -> list[Drifting]:
        things: list[Drifting] = []
        for shape in draw(size=size, rng=rng):
            assert isinstance(shape, Shape)
            texture = pictures[int(rng.integers(len(pictures)))]
            point, side = rng.uniform(0, period_of(texture), 2), math.exp(rng.uniform(*np.log(_VIEW)))
            fast = replace(shape, drift=STRIDE * shape.drift, spin=STRIDE * shape.spin)
            things.append(Cutout(fast, texture, point, side))
        return things

    return draw_objects


def render(root: Path, *, scenes: int, frames: int, seed: int, textures: Sequence[str]) -> Path:
    """Render scenes with their masks, laid out as DAVIS, unless they exist; return their folder.

    JPEGImages/128p/scene_000/00000.png …, Annotations/128p/scene_000/00000.png …, and ledger.csv for a build.
    """
    if (root / "ledger.csv").exists():
        return root
    pictures = [picture for picture in load_pictures(textures, seed=seed) if picture]
    rows = []
    for number in range(scenes):
        name, rng = f"scene_{number:03d}", np.random.default_rng([seed, 3, number])
        texture = pictures[int(rng.integers(len(pictures)))]
        motion = MOTIONS[number % len(MOTIONS)]
        path = camera_path(motion, frames=STRIDE * frames, period=period_of(texture), turned=False, rng=rng)[::STRIDE]
        clip, ids = render_scene(texture, path, cutouts(pictures), size=SIDE, rng=rng)
        for part in ("JPEGImages", "Annotations"):
            (root / part / f"{SIDE}p" / name).mkdir(parents=True, exist_ok=True)
        for frame, (picture, mask) in enumerate(zip(clip, ids, strict=True)):
            picture.save(root / "JPEGImages" / f"{SIDE}p" / name / f"{frame:05d}.png")
            write_ids(root / "Annotations" / f"{SIDE}p" / name / f"{frame:05d}.png", mask)
        rows.append(f"{name} 0 {frames - 1} {motion}\n")
    (root / "ledger.csv").write_text("".join(rows), encoding="ascii")
    return root


if __name__ == "__main__":
    main()
