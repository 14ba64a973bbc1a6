"""mae3d.training.mixing: what is drawn, what is mixed, and that clips and labels are mixed alike."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.model.config import MixConfig
from mae3d.training.mixing import Mix, check_batch, draw_mix, mix_clips, mix_targets, soft_targets

BOTH = MixConfig(mixup=0.8, cutmix=1.0)


def draws(config: MixConfig, count: int = 400, **fixed: int) -> Iterator[Mix]:
    for step in range(count):
        yield draw_mix(config, **({"seed": 0, "step": step, "rank": 0, "height": 24, "width": 32} | fixed))


def clips_of(kind: str, batch: int = 4) -> Tensor:
    clips = torch.randint(0, 256, (batch, 2, 24, 32, 3), dtype=torch.uint8)
    return clips if kind == "uint8" else clips.permute(0, 4, 1, 2, 3) / 255


def test_a_draw_depends_on_every_argument_and_on_nothing_else() -> None:
    arguments = {"seed": 1, "step": 2, "rank": 3, "micro": 4}
    same = draw_mix(BOTH, **arguments, height=224, width=224)
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    assert draw_mix(BOTH, **arguments, height=224, width=224) == same
    for name in arguments:
        assert draw_mix(BOTH, **(arguments | {name: 7}), height=224, width=224) != same


def test_kinds_come_as_often_as_asked() -> None:
    mixes = list(draws(MixConfig(mixup=0.8, cutmix=1.0, prob=0.5, switch_prob=0.25), 2000))
    plain = sum(mix == Mix(1.0) for mix in mixes)
    boxes = sum(mix.box is not None for mix in mixes)
    assert plain == pytest.approx(1000, abs=90)
    assert boxes == pytest.approx(250, abs=60)
    assert all(mix.box is None for mix in draws(MixConfig(mixup=0.8)))
    assert all(mix.box is not None for mix in draws(MixConfig(cutmix=1.0)))
    assert all(mix == Mix(1.0) for mix in draws(MixConfig()))


def test_shares_have_betas_moments() -> None:
    shares = np.array([mix.share for mix in draws(MixConfig(mixup=0.8), 3000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(a, a)


def test_the_share_is_that_of_the_clipped_box() -> None:
    clipped = 0
    for share, box in draws(MixConfig(cutmix=1.0)):
        assert box is not None
        top, left, height, width = box
        assert 0 <= top <= top + height <= 24
        assert 0 <= left <= left + width <= 32
        assert share == pytest.approx(1 - height * width / (24 * 32), abs=1e-12)
        clipped += bool(height and width) and abs(height / 24 - width / 32) > 0.2
    assert clipped > 20


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_cutmix_pastes_one_box_of_the_partner_into_all_frames(kind: str) -> None:
    clips = clips_of(kind)
    before = clips.clone()
    mixed = mix_clips(clips, Mix(0.5, (3, 5, 12, 16)))
    inside = torch.zeros(24, 32, dtype=torch.bool)
    inside[3:15, 5:21] = True
    where = inside[None, None, :, :, None] if kind == "uint8" else inside
    assert torch.equal(mixed, torch.where(where, clips.flip(0), clips))
    assert mixed.dtype == clips.dtype
    assert torch.equal(clips, before)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_mixup_blends_with_the_partner(kind: str) -> None:
    clips = clips_of(kind)
    before = clips.clone()
    mixed = mix_clips(clips, Mix(0.7))
    expected = 0.7 * clips.double() + 0.3 * clips.flip(0).double()
    assert mixed.dtype == clips.dtype
    assert (mixed.double() - expected).abs().max() <= (0.5 + 1e-4 if kind == "uint8" else 1e-6)
    assert torch.equal(clips, before)


@pytest.mark.parametrize("multi_label", [True, False])
def test_targets_are_mixed_as_pixels_are(multi_label: bool) -> None:
    """A clip whose pixels tell its label: the mixed pixels' mean is the mixed target."""
    hard = (
        torch.tensor([[1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]).float()
        if multi_label
        else torch.eye(3)[[0, 2, 1, 0]]
    )
    clips = hard[:, :, None, None, None].expand(-1, -1, 2, 24, 32)
    for mix in draws(BOTH, 50):
        torch.testing.assert_close(mix_clips(clips, mix).mean(dim=(2, 3, 4)), mix_targets(hard, mix), atol=1e-5, rtol=0)


def test_smoothing_is_upstreams_rule() -> None:
    targets = soft_targets(torch.tensor([2, 0]), num_classes=4, smoothing=0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    several = soft_targets(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), num_classes=4, smoothing=0.1)
    torch.testing.assert_close(several, torch.tensor([[0.925, 0.025, 0.925, 0.025]]))
    for mix in draws(BOTH, 20):
        torch.testing.assert_close(mix_targets(targets, mix).sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("labels", [torch.tensor([0, -1]), torch.tensor([4, 0]), torch.zeros(2, 3), torch.zeros(2)])
def test_labels_that_do_not_fit_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels"):
        soft_targets(labels, num_classes=4)


def test_a_batch_of_one_is_refused_unless_nothing_is_mixed() -> None:
    with pytest.raises(ValueError, match="two clips or more"):
        mix_clips(clips_of("uint8", 1), Mix(0.5))
    with pytest.raises(ValueError, match="two clips or more"):
        mix_targets(torch.eye(1), Mix(0.5))
    with pytest.raises(ValueError, match="got 1"):
        check_batch(BOTH, clips=1)
    check_batch(MixConfig(), clips=1)
    check_batch(MixConfig(mixup=0.8, prob=0.0), clips=1)
    check_batch(BOTH, clips=2)
    assert len(mix_clips(clips_of("uint8", 1), Mix(1.0))) == 1


@pytest.mark.parametrize("settings", [{"mixup": -1.0}, {"prob": 1.1}, {"switch_prob": -0.1}, {"smoothing": 1.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        MixConfig(**settings)
