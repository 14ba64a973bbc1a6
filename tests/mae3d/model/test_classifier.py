"""mae3d.model.classifier: pooling, dropout, drop path, the loss. Upstream's values: test_upstream_parity.py."""

import math

import pytest
import torch
from torch import Tensor

from mae3d.model.classifier import Classifier, classification_loss, drop_seed
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig

SIZES = {"preset": "mae_vit_tiny_patch16", "img_size": 16, "patch_size": 4, "num_frames": 4, "depth": 3}


def tiny(**settings: object) -> Classifier:
    return Classifier(ClassifierConfig(**(SIZES | {"num_classes": 7} | settings)))  # type: ignore[arg-type]


def clip_of(batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 4, 16, 16, 3), dtype=torch.uint8)


def test_each_clip_is_classified_on_its_own() -> None:
    model, clip = tiny(head_std=1.0).eval(), clip_of(3)
    logits = model(clip)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(model(clip[1:2]), logits[1:2], atol=1e-5, rtol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_reads_the_tokens_that_it_says(pooling: str) -> None:
    model, clip = tiny(pooling=pooling), clip_of()
    tokens = model.encoder(clip)
    chosen = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(model.features(clip), model.encoder.norm(chosen))


def test_the_head_starts_small_and_unbiased_and_the_loss_at_chance() -> None:
    model = tiny()
    assert 0 < model.head.weight.abs().max() <= 2  # truncated at 2 whatever the deviation
    assert 1.5e-5 < model.head.weight.std() < 2.5e-5
    assert not model.head.bias.any()
    targets = torch.eye(7)[:2]
    loss = classification_loss(model(clip_of()), targets, multi_label=False)
    assert loss.item() == pytest.approx(math.log(7), abs=1e-2)


def test_drop_path_rises_with_depth_and_acts_in_training_only() -> None:
    model = tiny(drop_path=0.4, head_std=1.0)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.encoder.blocks] == pytest.approx(rates)
    clip = clip_of()
    torch.manual_seed(0)
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))
    plain = tiny(head_std=1.0).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(clip), model(clip))


def test_dropout_lies_between_features_and_head() -> None:
    model, clip = tiny(dropout=0.5, head_std=1.0), clip_of()
    assert torch.equal(model.features(clip), model.features(clip))
    assert not torch.equal(model(clip), model(clip))


def test_the_same_seed_gives_the_same_drops_with_and_without_checkpointing() -> None:
    model, clip = tiny(dropout=0.5, drop_path=0.5, head_std=1.0), clip_of()
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(5)
        model(clip).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_soft_cross_entropy_is_the_formula() -> None:
    logits, targets = torch.randn(3, 5), torch.softmax(torch.randn(3, 5), dim=1)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(logits, targets, multi_label=False), expected)


def test_binary_cross_entropy_is_the_formula() -> None:
    logits, targets = torch.randn(3, 5), torch.rand(3, 5)
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(classification_loss(logits, targets, multi_label=True), expected)


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_loss_is_float32_and_wants_targets(multi_label: bool) -> None:
    logits = torch.randn(2, 5, dtype=torch.bfloat16)
    assert classification_loss(logits, torch.ones(2, 5) / 5, multi_label=multi_label).dtype == torch.float32
    with pytest.raises(ValueError, match="soft_targets"):
        classification_loss(logits, torch.tensor([1, 2]), multi_label=multi_label)


def test_a_config_is_taken_from_a_pretrained_one() -> None:
    mae = MAEConfig(**SIZES, mask_ratio=0.5, mean=(0.5, 0.4, 0.3))  # type: ignore[arg-type]
    config = ClassifierConfig.of(mae, num_classes=7, img_size=32)
    assert (config.depth, config.patch_size, config.mean, config.num_classes) == (3, 4, (0.5, 0.4, 0.3), 7)
    assert config.grid == (2, 8, 8)
    with pytest.raises(TypeError, match="nonsense"):
        ClassifierConfig.of(mae, nonsense=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"pooling": "max"}, "must be mean or cls"),
        ({"pooling": "cls", "cls_embed": False}, "pooling=mean"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"head_std": -1.0}, "head_std=-1.0"),
        ({"cls_embed": False, "patch_size": 16, "t_patch_size": 4}, "nothing to pool"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_it_learns_to_tell_bright_from_dark() -> None:
    torch.manual_seed(0)
    model = tiny(num_classes=2, depth=1)
    clip = torch.cat([torch.full((4, 4, 16, 16, 3), 40), torch.full((4, 4, 16, 16, 3), 200)]).to(torch.uint8)
    targets = torch.eye(2).repeat_interleave(4, dim=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        loss = classification_loss(model(clip), targets, multi_label=False)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert isinstance(model.config, EncoderConfig)


def test_the_seed_of_drops_depends_on_every_argument() -> None:
    arguments = {"step": 2, "rank": 3, "micro": 4}
    assert drop_seed(1, **arguments) == drop_seed(1, **arguments) != drop_seed(0, **arguments)
    for name in arguments:
        assert drop_seed(1, **(arguments | {name: 7})) != drop_seed(1, **arguments)
    torch.manual_seed(drop_seed(2**63 - 1, step=10**9, rank=1000, micro=3))  # within what torch takes
