"""mae3d.analysis.exact: every result that tables promise has the same bits with 1, 2 and 3 threads."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mae3d.analysis.exact import each_clip, one_thread
from mae3d.analysis.features import embed
from mae3d.analysis.probes import attentive_scores, knn_scores, linear_scores
from mae3d.analysis.reconstruct import clip_losses
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise

THREADS = (1, 2, 3)
# Widths, heads and batches at which MKL's products differ between these numbers of threads on an AMD processor.
SIZES: dict[str, Any] = {"img_size": 32, "num_frames": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
BATCH = 6
PRESET = "mae_vit_tiny_patch16"


pytestmark = pytest.mark.usefixtures("restored_threads")


def with_threads(compute: Callable[[], Any]) -> list[np.ndarray]:
    """Return the result with each number of threads, of torch as of numpy and scikit-learn."""
    import sklearn.linear_model  # noqa: F401  loads its BLAS
    from threadpoolctl import threadpool_limits

    results = []
    for threads in THREADS:
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            results.append(np.asarray(compute()))
            assert torch.get_num_threads() == threads
    return results


def assert_equal(results: list[np.ndarray]) -> None:
    for result in results[1:]:
        assert result.tobytes() == results[0].tobytes()


def clips() -> torch.Tensor:
    return torch.randint(256, (BATCH, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [24, 96, 192])
@pytest.mark.parametrize("classes", [2, 7, 12])
def test_logits_have_the_same_bits_with_any_number_of_threads(width: int, classes: int) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(PRESET, **SIZES | {"embed_dim": width}, num_classes=classes, head_std=1.0)
    model = Classifier(config).eval().requires_grad_(False)
    assert_equal(with_threads(lambda: each_clip(model, clips())))


@pytest.mark.parametrize("pool", ["mean", "cls", "tokens"])
def test_features_and_losses_have_the_same_bits_with_any_number_of_threads(pool: Any) -> None:
    torch.manual_seed(0)
    model = MAE(
        MAEConfig(
            PRESET, **SIZES, decoder_embed_dim=24, decoder_num_heads=2, decoder_depth=1, pred_t_dim=4, mask_ratio=0.5
        )
    )
    noise = mask_noise(seed=0, epoch=0, positions=range(BATCH), views=1, tokens=model.config.num_tokens)
    assert_equal(with_threads(lambda: each_clip(lambda clip: embed(model, clip, pool=pool), clips())))
    assert_equal(
        with_threads(
            lambda: each_clip(lambda clip, noise: torch.stack(clip_losses(model, clip, noise), 1), clips(), noise)
        )
    )


def test_a_clip_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    model = MAE(MAEConfig(PRESET, **SIZES, decoder_depth=1, pred_t_dim=4, mask_ratio=0.5)).encoder
    together = each_clip(lambda clip: embed(model, clip), clips())
    assert torch.equal(together[2:5], each_clip(lambda clip: embed(model, clip), clips()[2:5]))


@pytest.mark.parametrize("multi_label", [False, True])
def test_probes_have_the_same_bits_with_any_number_of_threads(
    multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae3d.analysis.probes.MIN_STEPS", 10)
    monkeypatch.setattr("mae3d.analysis.probes.EPOCHS", 1)
    monkeypatch.setattr("mae3d.analysis.logistic.BLOCK", 40)
    random = np.random.default_rng(0)
    train, test = (random.standard_normal((n, 24)).astype(np.float32) for n in (301, 83))
    targets = (random.random((301, 7)) < 0.3 if multi_label else np.eye(7)[random.integers(7, size=301)]).astype(
        np.uint8
    )
    tokens = [features.reshape(-1, 3, 8).astype(np.float16) for features in (train, test)]
    assert_equal(with_threads(lambda: np.stack(list(knn_scores(train, targets, test).values()))))
    assert_equal(with_threads(lambda: linear_scores(train, targets, test, multi_label=multi_label)[0]))
    assert_equal(
        with_threads(
            lambda: attentive_scores(tokens[0], targets, tokens[1], multi_label=multi_label, num_heads=2, device="cpu")[
                0
            ]
        )
    )


def test_pieces_are_spread_over_the_threads_and_come_back_in_order() -> None:
    torch.set_num_threads(3)
    meeting = threading.Barrier(3, timeout=60)

    def piece(number: int) -> tuple[int, int]:
        meeting.wait()  # passes only if three pieces are computed at once
        return number, torch.get_num_threads()

    with one_thread() as spread:
        assert torch.get_num_threads() == 1
        assert spread(piece, range(9)) == [(number, 1) for number in range(9)]
    assert torch.get_num_threads() == 3


def test_an_error_in_a_piece_is_raised_and_the_threads_are_given_back() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="clip"), one_thread() as spread:
        spread(refuse, [1, 2])
    assert torch.get_num_threads() == 2


def refuse(clip: int) -> None:
    raise ValueError(f"clip {clip}")
