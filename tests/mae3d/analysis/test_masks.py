"""J and F of masks whose figures can be counted by hand."""

import math

import numpy as np
import pytest

from mae3d.analysis.masks import contour_accuracy, outline, over_video, region_similarity


def box(top: int, left: int, side: int = 10, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = np.zeros((30, 40), bool)


@pytest.mark.parametrize(("shift", "hits"), [(0, 36), (1, 36), (2, 20), (5, 14), (12, 0)])
def test_a_shifted_square_has_the_regions_and_outlines_of_a_hand_count(shift: int, hits: int) -> None:
    """The diagonal is 50 pixels, and the tolerance of 0.4 pixels is rounded up to 1.

    Of the outline's 36 pixels those of the upper and lower row match up to a column beside the other square's; those of
    the columns all do for a shift of 1, and for a longer one the two beside the other square's rows.
    """
    mask, truth = box(8, 8 + shift), box(8, 8)
    shared = 10 * max(0, 10 - shift)
    assert region_similarity(mask, truth) == shared / (200 - shared)
    assert contour_accuracy(mask, truth) == pytest.approx(hits / 36)  # precision and recall alike
    assert contour_accuracy(mask.T, truth.T) == pytest.approx(hits / 36)


def test_outlines_three_pixels_apart_match_within_a_tolerance_of_three() -> None:
    mask, truth = box(8, 8, 10), box(5, 5, 16)  # all around it, three pixels away
    assert contour_accuracy(mask, truth, tolerance=2 / 50) == 0
    # Precision 1; of the 60 true pixels the four corners, 3 * sqrt(2) away, and their neighbours with more than three
    # pixels to go do not match: each side has 10 that face the square.
    assert contour_accuracy(mask, truth, tolerance=3 / 50) == pytest.approx(2 * (40 / 60) / (1 + 40 / 60))


def test_empty_masks_agree_with_one_another_alone() -> None:
    assert region_similarity(EMPTY, EMPTY) == contour_accuracy(EMPTY, EMPTY) == 1
    for pair in ((EMPTY, box(8, 8)), (box(8, 8), EMPTY)):
        assert region_similarity(*pair) == contour_accuracy(*pair) == 0


def test_an_outline_is_inside_its_mask_and_not_at_the_frames_edge() -> None:
    assert outline(box(8, 8, 3)).sum() == 8
    assert not outline(np.ones((4, 5), bool)).any()
    corner = outline(box(0, 0, 3))
    assert np.argwhere(corner).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1], [2, 2]]


def test_a_figure_over_a_video_has_mean_recall_and_decay() -> None:
    figures = over_video([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.0])  # quarters of 3, 2, 2 and 2 frames
    assert figures.mean == pytest.approx(4.0 / 9)
    assert figures.recall == 3 / 9  # 0.5 itself does not count
    assert figures.decay == pytest.approx(0.8 - 0.1)
    assert math.isnan(over_video([1.0, 0.0, 0.0]).decay)
