"""Our model against values that upstream's own code gave: every case in the folder MAE3D_GOLDEN (default tests/golden).

`pytest tests/mae3d/model/test_upstream_parity.py -s` prints the largest error of each kind. Format:
tests/golden/README.md.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.training.optim import finetune_groups
from mae3d.weights.convert import encoder_from_foreign, from_foreign, to_foreign
from mae3d.weights.rules import autoencoder_rules

GOLDEN = Path(os.environ.get("MAE3D_GOLDEN", Path(__file__).parents[2] / "golden"))
OUTPUT_TOLERANCE = 1e-5  # float32: absolute where values are below 1, relative above
GRADIENT_TOLERANCE = 1e-4  # of a parameter's largest gradient


def cases(kind: str) -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob(f"{kind}_*.json"))


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return facts, weights and values of one case."""
    facts = json.loads((GOLDEN / f"{case}.json").read_text())
    return (
        facts,
        load_file(GOLDEN / f"{case}.weights.safetensors"),
        load_file(GOLDEN / f"{case}.io.safetensors"),
    )


def settings(facts: dict[str, Any]) -> dict[str, Any]:
    """Translate upstream's constructor arguments to our names."""
    config = dict(facts["config"])
    assert config.pop("in_chans", 3) == 3
    config["qkv_bias"] = not config.pop("no_qkv_bias", False)
    return config | {"mlp_ratio": facts["mlp_ratio"]}


def error(ours: Tensor, golden: Tensor) -> float:
    """Return the largest difference, over the larger of 1 and the golden value."""
    assert ours.shape == golden.shape
    ours = ours.detach()
    return float(((ours.double() - golden.double()).abs() / golden.double().abs().clamp_min(1)).max())


def run(case: str) -> tuple[MAE, dict[str, float]]:
    """Run a pretraining case and return the errors of all its values."""
    facts, weights, golden = read(case)
    config = MAEConfig(**settings(facts), mask_ratio=facts["mask_ratio"])
    model = MAE(config)
    model.load_state_dict(from_foreign(weights, config, format="mae_st")[1])
    out = model(golden["clip"], golden["noise"], full=True)
    out.loss.backward()
    errors = {
        "loss": error(out.loss.reshape(golden["loss"].shape), golden["loss"]),
        "pred": error(out.pred, golden["pred"]),
        "latent": error(out.latent, golden["latent"]),
        "mask": error(out.mask, golden["mask"]),
        "ids_restore": error(out.ids_restore, golden["ids_restore"]),
        "target frames": error(torch.tensor(model.target_frames), golden["target_frames"]),
    }
    assert (config.num_tokens, config.num_kept) == (facts["tokens"], facts["kept"])
    return model, errors


def gradient_errors(model: MAE, golden: dict[str, Tensor]) -> dict[str, float]:
    """Each parameter's largest difference over its largest gradient; gradients convert as weights do."""
    ours = to_foreign(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model.config, format="mae_st"
    )
    theirs = {name.removeprefix("grad."): value for name, value in golden.items() if name.startswith("grad.")}
    assert set(ours) == set(theirs)
    # A key's bias does not move a softmax: its gradient is rounding only, and is measured against the query's.
    scale = {name: float(theirs[name.replace(".k.bias", ".q.bias")].abs().max()) for name in theirs}
    return {name: float((ours[name] - g).abs().max()) / scale[name] for name, g in theirs.items()}


@pytest.mark.parametrize("case", cases("mae"))
def test_mae_equals_upstream(case: str) -> None:
    model, errors = run(case)
    gradients = gradient_errors(model, read(case)[2])
    worst = max(gradients, key=lambda name: gradients[name])
    print(f"\n{case}: " + ", ".join(f"{name} {value:.1e}" for name, value in errors.items()), end="")
    print(f", {len(gradients)} gradients {gradients[worst]:.1e} ({worst})")
    assert {name: value for name, value in errors.items() if value > OUTPUT_TOLERANCE} == {}
    assert {name: value for name, value in gradients.items() if value > GRADIENT_TOLERANCE} == {}


@pytest.mark.parametrize("case", cases("mae"))
def test_training_path_equals_the_full_one(case: str) -> None:
    """`full=False` leaves work out, not exactness: same loss, same prediction of the hidden tokens."""
    facts, weights, golden = read(case)
    config = MAEConfig(**settings(facts), mask_ratio=facts["mask_ratio"])
    model = MAE(config)
    model.load_state_dict(from_foreign(weights, config, format="mae_st")[1])
    short = model(golden["clip"], golden["noise"])
    order = golden["noise"].argsort(dim=1, stable=True)[:, config.num_kept :]
    hidden = torch.gather(golden["pred"], 1, order[..., None].expand(-1, -1, golden["pred"].shape[-1]))
    assert error(short.loss.reshape(1), golden["loss"]) <= OUTPUT_TOLERANCE
    assert error(short.pred, hidden) <= OUTPUT_TOLERANCE


def classifier(case: str) -> tuple[Classifier, dict[str, Any], dict[str, Tensor]]:
    """Open a classification case: our model with its weights, its facts, its values."""
    facts, weights, golden = read(case)
    config = ClassifierConfig(**settings(facts))
    head = {f"head.{kind}": weights.pop(f"head.{kind}") for kind in ("weight", "bias")}
    encoder = {
        f"encoder.{name}": tensor for name, tensor in encoder_from_foreign(weights, config, format="mae_st")[1].items()
    }
    model = Classifier(config).eval()
    model.load_state_dict(encoder | head)
    return model, facts, golden


@pytest.mark.parametrize("case", cases("vit"))
def test_classifier_equals_upstream(case: str) -> None:
    """Mean over the tokens after the first, norm, head."""
    model, _, golden = classifier(case)
    logits = model(golden["clip"])
    print(f"\n{case}: logits {error(logits, golden['logits']):.1e}")
    assert error(logits, golden["logits"]) <= OUTPUT_TOLERANCE


@pytest.mark.parametrize("case", cases("vit"))
def test_finetuning_rates_and_decays_are_upstreams(case: str) -> None:
    model, facts, _ = classifier(case)
    groups = finetune_groups(model, weight_decay=0.05, layer_decay=facts["layer_decay"])
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decayed = {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}
    encoder = MAEConfig(
        **{name: value for name, value in settings(facts).items() if name != "num_classes"}, mask_ratio=0.5
    )
    theirs = {name: rule.ours for rule in autoencoder_rules("mae_st", encoder) for name in rule.theirs}
    ours = {name: theirs.get(name, name) for name in facts["lr_scale"]}  # the head is called as in upstream
    assert set(ours.values()) == set(scale)
    assert {name: scale[ours[name]] for name in ours} == pytest.approx(facts["lr_scale"], rel=1e-12)
    assert {name: decayed[ours[name]] for name in ours} == facts["weight_decayed"]


def test_there_are_cases() -> None:
    assert cases("mae"), f"no golden cases in {GOLDEN}"


def test_every_weight_of_the_model_has_a_rule() -> None:
    for case in cases("mae"):
        facts, _, _ = read(case)
        config = MAEConfig(**settings(facts))
        assert {rule.ours for rule in autoencoder_rules("mae_st", config)} == set(MAE(config).state_dict())
