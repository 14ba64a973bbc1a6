"""A size of pictures is one number for a square, or height and width; it has sides, a text, and boxes of its aspect.

size ─► (height, width); frame, size ─► the largest box that is scaled to the size without distortion

    sides(224), sides((128, 224))                       # (224, 224), (128, 224)
    largest_box(256, 340, size=(128, 224))              # (194, 340)
"""

from collections.abc import Sequence

Size = int | tuple[int, int]  # pixels: of a square, or (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def plain_size(size: int | Sequence[int]) -> Size:
    """Return the one form in which a size is kept: a square's as one number, a list's as a tuple.

    Whether the numbers are whole and fit is for the bounds of a setting to say.

    Raises:
        ValueError: There are more or fewer numbers than two.
    """
    if not isinstance(size, Sequence):
        return size
    if len(size) != 2:
        raise ValueError(f"a size of {list(size)} has {len(size)} numbers: give one for a square, or height and width")
    height, width = size
    return height if height == width else (height, width)


def size_text(size: Size) -> str:
    """Return a size for people, `height x width`."""
    height, width = sides(size)
    return f"{height} x {width}"


def largest_box(height: int, width: int, size: Size) -> tuple[int, int]:
    """Return height and width of the largest box in a frame that has a size's aspect, to whole pixels of the frame."""
    box_height, box_width = sides(size)
    if height * box_width > width * box_height:
        return max(round(width * box_height / box_width), 1), width
    return height, max(round(height * box_width / box_height), 1)
