"""The camera of the demo's clips: its motion is a clip's label.

    path = camera_path("zoom_in", frames=24, period=(640, 427), turned=False, rng=rng)     # (24, 4)

A single frame does not give the label away: place, magnification and orientation are drawn in the same way for every
label. Magnifications have the same distribution over the frames of a clip for every label; if one of the motions turns
the camera, every clip has a random orientation.
"""

import math

import numpy as np

_PANS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_ZOOMS = {"zoom_in": -1.0, "zoom_out": 1.0}  # the sign of the view's growth
TURNS = {"turn_left": -1.0, "turn_right": 1.0}  # the camera's sense: the picture turns the other way
_DIAGONALS = {
    f"{vertical}_{horizontal}": (x * math.sqrt(0.5), y * math.sqrt(0.5))
    for vertical, y in (("up", -1), ("down", 1))
    for horizontal, x in (("left", -1), ("right", 1))
}
MOTIONS = (*_PANS, *_ZOOMS, *TURNS, *_DIAGONALS)
DEFAULT_MOTIONS = MOTIONS[:6]

_WINDOW = (160.0, 280.0)  # side of the camera's view in pixels of the picture, at the middle of a clip
_PAN = (0.015, 0.03)  # sides of the view per frame
_ZOOM = (0.4, 0.7)  # natural logarithm of the magnification over a clip
_TURN = (0.05, 0.1)  # radians per frame


def camera_path(
    motion: str, *, frames: int, period: tuple[int, int], turned: bool, rng: np.random.Generator
) -> np.ndarray:
    """Return the camera's view at each frame, float64 (frames, 4): its centre x and y, its side, its angle.

    Centre and side are pixels of the picture, the angle is in radians, clockwise for a viewer of the picture. All
    labels draw the same numbers in the same order; the label only decides how they are used.

    Args:
        motion: one of MOTIONS.
        frames: number of frames.
        period: (width, height) after which the picture repeats.
        turned: whether the camera has a random orientation; needed if a label is a turn.
        rng: draws the path.
    """
    side = math.exp(rng.uniform(*np.log(_WINDOW)))
    centre = rng.uniform(0, period, 2)
    pan, zoom = rng.uniform(*_PAN), rng.uniform(*_ZOOM)
    moment = rng.uniform(-0.5, 0.5)
    orientation, turn = (rng.uniform(0, 2 * math.pi), rng.uniform(*_TURN)) if turned else (0.0, 0.0)
    time = np.linspace(-0.5, 0.5, frames)
    # A clip that pans has the view that a zooming one has at some moment.
    sides = side * np.exp(zoom * (time * _ZOOMS[motion] if motion in _ZOOMS else np.full(frames, moment)))
    angles = orientation + turn * TURNS.get(motion, 0.0) * time * (frames - 1)
    # The camera moves left, as it is held: the picture moves right.
    x, y = (_PANS | _DIAGONALS).get(motion, (0.0, 0.0))
    cosine, sine = math.cos(orientation), math.sin(orientation)
    direction = (cosine * x - sine * y, sine * x + cosine * y)
    centres = centre + np.outer(time * (frames - 1), direction) * pan * side
    return np.concatenate([centres, sides[:, None], angles[:, None]], axis=1)
