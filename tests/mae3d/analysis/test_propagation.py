"""Carried labels: features made by hand, in which the nearest patch is known."""

from typing import Any

import numpy as np
import pytest
import torch

from mae3d.analysis.features import embed
from mae3d.analysis.propagation import Propagator, frame_features, frame_mask, patch_labels
from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder, frame_config
from mae3d.weights.resize import resized_encoder

GRID = (6, 6)
SETTINGS: dict[str, Any] = {"grid": GRID, "k": 1, "context": 0, "radius": 0, "temperature": 0.1}
CONFIG = EncoderConfig("mae_vit_tiny_patch16", img_size=32, num_frames=4, embed_dim=24, depth=2, num_heads=2)


def an_encoder(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**vars(CONFIG) | changes)).eval()


def one_hot(ids: list[list[int]] | np.ndarray) -> torch.Tensor:
    """Return features by which each number is equal to itself alone."""
    return torch.eye(64)[torch.tensor(np.asarray(ids).ravel(), dtype=torch.int64)]


def square(top: int, left: int, number: int = 1) -> np.ndarray:
    ids = np.zeros(GRID, np.uint8)
    ids[top : top + 2, left : left + 2] = number
    return ids


def carried(ids: list[np.ndarray], labels: torch.Tensor, **changes: Any) -> list[torch.Tensor]:
    """Return the labels of the frames behind the first, of frames with one feature for each number."""
    propagator = Propagator(one_hot(ids[0]), labels, **SETTINGS | changes)
    return [propagator.step(one_hot(frame)) for frame in ids[1:]]


def test_a_mask_follows_the_features_of_its_objects_exactly() -> None:
    frames = [square(0, 0) | square(3, 4, 2), square(1, 2) | square(3, 3, 2), square(4, 4) | square(0, 1, 2)]
    labels = patch_labels(frames[0], [1, 2], GRID)
    for k in (1, 4):
        for frame, found in zip(frames[1:], carried(frames, labels, k=k, context=1), strict=True):
            assert np.array_equal(frame_mask(found, GRID, GRID), frame)


def test_a_permutation_of_the_objects_permutes_the_masks() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 36, 8)
    ids = np.random.default_rng(0).integers(0, 4, (24, 24)).astype(np.uint8)
    results = []
    for objects in ([1, 2, 3], [3, 1, 2]):
        propagator = Propagator(features[0], patch_labels(ids, objects, GRID), **SETTINGS | {"k": 5, "context": 2})
        numbers = np.array([0, *objects], np.uint8)
        results.append([numbers[frame_mask(propagator.step(there), GRID, (24, 24))] for there in features[1:]])
    assert np.array_equal(results[0], results[1])
    assert len(np.unique(results[0])) == 4


def test_labels_farther_away_than_the_radius_are_out_of_reach() -> None:
    frames = [square(0, 0), square(0, 3)]  # three columns to the right
    labels = patch_labels(frames[0], [1], GRID)
    for radius, share in ((3, 1.0), (2, 0.0), (0, 1.0)):
        (found,) = carried(frames, labels, radius=radius)
        assert found.reshape(*GRID, 2)[0, 4, 1] == share  # within 2 columns there is background alone


def test_a_patch_takes_the_mean_of_its_k_nearest_by_a_softmax() -> None:
    cosines = torch.tensor([0.9, 0.7, 0.5, 0.1])
    first = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    labels = torch.eye(4)
    for k in (1, 2, 3):
        settings = SETTINGS | {"grid": (2, 2), "k": k, "temperature": 0.2}
        found = Propagator(first, labels, **settings).step(torch.tensor([[2.0, 0.0]]).expand(4, 2))
        expected = torch.zeros(4)
        expected[:k] = torch.softmax(cosines[:k] / 0.2, dim=0)
        assert torch.allclose(found, expected.expand(4, 4), atol=1e-6)


def test_equal_cosines_at_the_last_place_share_it() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    settings = SETTINGS | {"grid": (2, 2), "k": 2, "temperature": 1.0}
    found = Propagator(first, torch.eye(4), **settings).step(query)
    nearest = torch.softmax(torch.tensor([1.0, 0.0]), dim=0)
    assert torch.allclose(found[0], torch.tensor([nearest[0], nearest[1] / 2, nearest[1] / 2, 0.0]))


def test_the_context_holds_the_latest_frames_and_the_first_one_always() -> None:
    """The object turns, is hidden for a frame, and has turned on: it is known by the frame before the last alone."""
    first = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    later = torch.tensor([[0.0, 1.0, 0.1], [0.0, 0.0, 1.0]])  # nearer to the background than to the first look
    for context, follows in ((0, False), (1, False), (2, True)):
        propagator = Propagator(
            first, torch.eye(2), **SETTINGS | {"grid": (1, 2), "context": context, "temperature": 0.01}
        )
        propagator.step(turned)
        propagator.step(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))  # the object is hidden
        found = propagator.step(later)
        assert (found[0, 0] > 0.5) == follows
        again = propagator.step(first)
        assert again[0, 0] > 0.99  # the first frame is never forgotten


def test_patch_labels_are_shares_of_pixels_and_masks_come_back_at_any_size() -> None:
    ids = np.zeros((8, 12), np.uint8)
    ids[:4, :6] = 3
    ids[4:, 8:] = 200
    labels = patch_labels(ids, [3, 200], (2, 2))
    assert torch.allclose(labels, torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0], [1 / 3, 0, 2 / 3]]))
    assert np.unique(frame_mask(labels, (2, 2), (33, 50))).tolist() == [0, 1, 2]
    tied = torch.tensor([[0.5, 0.5]]).expand(4, 2)
    assert not frame_mask(tied, (2, 2), (5, 5)).any()  # the first of equal ones


def frames(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return list(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_frames_get_the_tokens_of_clips_that_follow_one_another_or_of_one_that_stands_still() -> None:
    encoder, pictures = an_encoder(), frames(6)
    slide = list(frame_features(encoder, pictures, mode="slide", batch=1))
    last = np.stack([pictures[number] for number in (4, 5, 5, 5)])
    for start, clip in ((0, np.stack(pictures[:4])), (4, last)):
        tokens = embed(encoder, torch.from_numpy(clip)[None], pool="tokens")[0].unflatten(0, (2, 4))
        for number in range(start, min(start + 4, 6)):
            assert torch.equal(slide[number], tokens[(number - start) // 2])
    still = list(frame_features(encoder, pictures, mode="still", layer=1))
    clip = torch.from_numpy(np.stack([pictures[3]] * 4))[None]
    assert torch.equal(still[3], embed(encoder, clip, layer=1, pool="tokens")[0].unflatten(0, (2, 4)).mean(0))
    assert len(slide) == len(still) == 6


def test_an_encoder_of_another_size_has_the_same_weights_and_a_grid_of_its_own() -> None:
    encoder = an_encoder()
    assert resized_encoder(encoder, img_size=32, num_frames=4) is encoder
    fine = resized_encoder(encoder, img_size=64, num_frames=2)
    assert fine.config.grid == (1, 4, 4)
    assert torch.equal(fine.positions.temporal[0, 0], encoder.positions.temporal[0].mean(0))
    assert torch.equal(fine.blocks[1].mlp.fc1.weight, encoder.blocks[1].mlp.fc1.weight)
    image = FrameEncoder(frame_config("vit_tiny_patch16_224", num_frames=4, img_size=32)).eval()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    larger = resized_encoder(image, img_size=64, num_frames=1)
    (features,) = frame_features(larger, [picture])
    assert features.shape == (16, image.config.embed_dim)
    assert image.config.grid == (4, 2, 2)  # as it was
    with pytest.raises(ValueError, match=r"img_size=40.*16"):
        resized_encoder(encoder, img_size=40, num_frames=2)


@pytest.mark.usefixtures("restored_threads")
def test_masks_have_the_same_bits_with_any_number_of_threads_and_clips_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mae3d.analysis.propagation._AFFINITIES", 300)
    encoder = an_encoder(img_size=96)
    pictures = list(np.random.default_rng(2).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8))
    labels = patch_labels(square(1, 1), [1], GRID)
    results = []
    for threads, batch in ((1, 1), (2, 3), (3, 8)):
        torch.set_num_threads(threads)
        features = frame_features(encoder, pictures, batch=batch)
        propagator = Propagator(next(features), labels, **SETTINGS | {"k": 5, "context": 2})
        results.append(torch.stack([propagator.step(there) for there in features]).numpy().tobytes())
    assert results[0] == results[1] == results[2]
