"""mae3d.training.optim: upstream's schedule and its rule for weight decay."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.training.optim import AdamW, ema_decay, finetune_groups, lr_at, pretrain_groups

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "lr_schedule.json").read_text())
TINY = MAEConfig(preset="mae_vit_tiny_patch16", img_size=32, depth=1, decoder_depth=1)


def at(step: float, *, per_epoch: int = 1) -> float:
    return lr_at(
        step,
        lr=GOLDEN["lr"],
        min_lr=GOLDEN["min_lr"],
        warmup_steps=GOLDEN["warmup_epochs"] * per_epoch,
        total_steps=GOLDEN["epochs"] * per_epoch,
    )


@pytest.mark.parametrize(("epoch", "expected"), GOLDEN["points"])
def test_schedule_equals_upstream(epoch: float, expected: float) -> None:
    assert at(epoch) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert at(round(epoch * 300), per_epoch=300) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_it_rises_then_falls_and_stays_at_the_end() -> None:
    rates = [at(step, per_epoch=10) for step in range(1000)]
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert at(1001, per_epoch=10) == at(10**9, per_epoch=10) == GOLDEN["min_lr"]


def test_no_warmup_starts_at_the_peak() -> None:
    assert lr_at(0, lr=0.1, min_lr=0.0, warmup_steps=0, total_steps=10) == 0.1
    assert lr_at(0, lr=0.1, min_lr=0.01, warmup_steps=0, total_steps=0) == 0.01


def test_groups_hold_every_parameter_once_and_decay_as_upstream() -> None:
    model = MAE(TINY)
    decayed, plain = pretrain_groups(model, weight_decay=0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert sorted(decayed["names"] + plain["names"]) == sorted(name for name, _ in model.named_parameters())
    parameters = dict(model.named_parameters())
    for group in (decayed, plain):
        assert all(parameters[n] is p for n, p in zip(group["names"], group["params"], strict=True))
        assert group["lr_scale"] == 1.0
    tokens = {"encoder.cls_token", "decoder.mask_token", "decoder.cls_token", "encoder.positions.spatial"}
    assert tokens <= set(decayed["names"])
    assert {"encoder.norm.weight", "encoder.patch_embed.bias", "decoder.head.bias"} <= set(plain["names"])


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = MAE(TINY).requires_grad_(False)
    model.decoder.mask_token.requires_grad_()
    (group,) = pretrain_groups(model, weight_decay=0.05)
    assert group["names"] == ["decoder.mask_token"]


# Names and numbers per parameter are upstream's: test_upstream_parity.py.
CLASSIFIER = ClassifierConfig(preset="mae_vit_tiny_patch16", img_size=32, depth=3, num_classes=5)


@pytest.mark.parametrize("layer_decay", [0.75, 1.0])
def test_finetuning_groups_hold_every_parameter_once(layer_decay: float) -> None:
    model = Classifier(CLASSIFIER)
    groups = finetune_groups(model, weight_decay=0.05, layer_decay=layer_decay)
    parameters = dict(model.named_parameters())
    assert sorted(name for group in groups for name in group["names"]) == sorted(parameters)
    for group in groups:
        assert all(parameters[n] is p for n, p in zip(group["names"], group["params"], strict=True))
    kinds = {(group["lr_scale"], group["weight_decay"]) for group in groups}
    assert len(kinds) == len(groups) == (10 if layer_decay < 1 else 2)
    assert {scale for scale, _ in kinds} == {layer_decay**i for i in range(5)}


@pytest.mark.parametrize("separable", [True, False])
def test_finetuning_decays_matrices_only(separable: bool) -> None:
    model = Classifier(replace(CLASSIFIER, sep_pos_embed=separable))
    groups = finetune_groups(model, weight_decay=0.05, layer_decay=1.0)
    decayed = {name: group["weight_decay"] for group in groups for name in group["names"]}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    others = decayed.keys() - matrices
    assert {n.removeprefix("encoder.positions.") for n in others if "positions" in n} == (
        {"spatial", "temporal", "cls"} if separable else {"joint"}
    )
    assert "encoder.cls_token" in others
    assert {decayed[name] for name in matrices} == {0.05}
    assert {decayed[name] for name in others} == {0.0}


def test_an_image_vit_learns_at_the_rates_of_its_layers() -> None:
    sizes = {"img_size": 32, "num_frames": 2, "patch_size": 16, "t_patch_size": 1, "embed_dim": 64, "num_heads": 2}
    config = ClassifierConfig(**sizes, depth=8, cls_embed=False, backbone="test_vit2", num_classes=3)
    groups = finetune_groups(Classifier(config), weight_decay=0.05, layer_decay=0.5)
    rates = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert rates["encoder.vit.patch_embed.proj.weight"] == (0.5**9, 0.05)
    assert rates["encoder.vit.pos_embed"] == rates["encoder.vit.reg_token"] == (0.5**9, 0)
    assert rates["encoder.vit.blocks.2.attn.qkv.weight"] == (0.5**6, 0.05)
    assert rates["encoder.vit.fc_norm.weight"] == (1, 0)
    assert rates["head.weight"] == (1, 0.05)


def test_frozen_blocks_leave_the_rates_of_the_others() -> None:
    model = Classifier(CLASSIFIER)
    rates = {n: g["lr_scale"] for g in finetune_groups(model, weight_decay=0.0, layer_decay=0.5) for n in g["names"]}
    model.encoder.blocks[2].requires_grad_(False)
    left = {n: g["lr_scale"] for g in finetune_groups(model, weight_decay=0.0, layer_decay=0.5) for n in g["names"]}
    assert left == {n: rate for n, rate in rates.items() if not n.startswith("encoder.blocks.2.")}


@pytest.mark.parametrize("layer_decay", [0.0, 1.5])
def test_a_layer_decay_that_cannot_be_is_refused(layer_decay: float) -> None:
    with pytest.raises(ValueError, match="1 switches it off"):
        finetune_groups(Classifier(CLASSIFIER), weight_decay=0.0, layer_decay=layer_decay)


def test_fault_43_a_short_runs_average_leaves_the_first_weights() -> None:
    left = 1.0
    for step in range(60):
        decay = ema_decay(step, 0.9999)
        assert decay == pytest.approx((1 + step) / (10 + step))
        left *= decay
    assert left < 1e-6  # a constant decay would leave 0.994
    assert ema_decay(10**6, 0.9999) == 0.9999
    assert ema_decay(0, 0.05) == 0.05


def test_adamw_steps_and_keeps_state_as_torchs_to_the_last_bit() -> None:
    kinds: tuple[type[torch.optim.AdamW], ...] = (AdamW, torch.optim.AdamW)
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in kinds]
    optimizers = [kind([weight], lr=0.1, fused=True) for kind, weight in zip(kinds, weights, strict=True)]
    for step in range(3):
        for optimizer, weight in zip(optimizers, weights, strict=True):
            weight.grad = torch.sin(torch.arange(7.0) + step)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad()
            assert weight.grad is None
    assert torch.equal(*weights)
    ours, torchs = (optimizer.state_dict() for optimizer in optimizers)
    assert ours["param_groups"] == torchs["param_groups"]
    assert all(torch.equal(ours["state"][0][name], moment) for name, moment in torchs["state"][0].items())
