"""Files of other trainers are recognised for certain, whatever they are wrapped in, or refused with what was found."""

import fractions
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.convert import ConvertError, encoder_from_foreign, encoder_to_foreign
from mae3d.weights.files import WeightsError, content_hash, open_encoder, read_tensors, save_model
from mae3d.weights.recognition import recognise

CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=1)
HINTS = {"num_heads": 3}


@pytest.fixture(scope="module")
def foreign() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return encoder_to_foreign(Encoder(CONFIG).state_dict(), CONFIG, format="mae_st")


def shared_names() -> dict[str, Tensor]:
    """Return an encoder under names that V-JEPA, timm and PySlowFast share: one qkv, one table, no class token."""
    return {
        "patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16),
        "patch_embed.proj.bias": torch.zeros(8),
        "blocks.0.attn.qkv.weight": torch.zeros(24, 8),
        "pos_embed": torch.zeros(1, 8, 8),
    }


@pytest.mark.parametrize(
    ("prefix", "inside"),
    [
        *((prefix, "") for prefix in ("module.", "model.", "_orig_mod.", "encoder.", "backbone.", "net.", "student.")),
        ("teacher.backbone.", ""),
        ("module._orig_mod.model.", ""),
        ("_forward_module.model.target_encoder.", ""),
        ("encoder._orig_mod.", "_orig_mod."),
        ("model._fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."),
        ("model.", "module."),
    ],
)
def test_names_lose_what_trainers_put_around_models_and_modules(
    foreign: dict[str, Tensor], prefix: str, inside: str
) -> None:
    wrapped = {
        prefix + name.replace("attn.", f"attn.{inside}").replace("blocks.0.", f"blocks.0.{inside}"): tensor
        for name, tensor in foreign.items()
    }
    state = encoder_from_foreign(wrapped | {"head.weight": torch.zeros(2, 192)}, hints=HINTS)[1]
    ours = encoder_from_foreign(foreign, hints=HINTS)[1]
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.items())


def test_tensors_beside_the_encoders_module_are_left_out_and_named_and_those_inside_are_accounted_for(
    foreign: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    beside = {f"backbone.{name}": tensor for name, tensor in foreign.items()} | {"criterion.weight": torch.zeros(2)}
    encoder_from_foreign(beside, hints=HINTS)
    assert "1 tensors outside backbone are left out: criterion.weight" in caplog.text
    with pytest.raises(ConvertError, match=r"left over: criterion\.weight$"):
        encoder_from_foreign(beside | {"backbone.criterion.weight": torch.zeros(2)}, hints=HINTS)


@pytest.mark.parametrize(
    ("models", "taken"),
    [
        (("student", "teacher"), "teacher"),
        (("student.backbone", "teacher.backbone"), "teacher.backbone"),
        (("encoder", "target_encoder"), "target_encoder"),
        (("model", "model_ema"), "model"),
        (("online_model", "ema.ema_model"), "online_model"),
        (("net", "net_ema"), "net"),
        (("a", "b"), ""),
    ],
)
def test_of_several_models_in_one_state_dict_the_usual_one_is_taken_and_said(
    foreign: dict[str, Tensor], caplog: pytest.LogCaptureFixture, models: tuple[str, str], taken: str
) -> None:
    several = {
        f"module.{model}.{name}": tensor + i for i, model in enumerate(models) for name, tensor in foreign.items()
    }
    if not taken:
        told = rf"several models, under a\. \({len(foreign)} tensors\), b\. \({len(foreign)} tensors\): .*FILE#b"
        with pytest.raises(ConvertError, match=told):
            encoder_from_foreign(several, hints=HINTS)
        return
    state = encoder_from_foreign(several, hints=HINTS)[1]
    assert torch.equal(state["norm.bias"], foreign["norm.bias"] + models.index(taken))
    (left,) = set(models) - {taken}
    assert re.search(rf"{taken}\. \(\d+ tensors\) is taken, .*; left out: {left}\. \(\d+ tensors\)", caplog.text)


@pytest.mark.parametrize(
    "keys",
    [
        *(["model"], ["model_state"], ["module"], ["state_dict"], ["model_state_dict"], ["target_encoder"], ["ema"]),
        *([], ["ema", "state_dict"], ["model", "module", "state_dict"]),
    ],
    ids=".".join,
)
def test_the_one_state_dict_is_found_under_any_keys(
    foreign: dict[str, Tensor], tmp_path: Path, keys: list[str]
) -> None:
    content: dict[str, Any] = foreign
    for key in reversed(keys):
        content = {key: content, "temperature": torch.ones(1)}
    trainer: dict[str, Any] = {"optimizer": {"state": {"norm.bias": {"exp_avg": torch.ones(1)}}}, "epoch": 3}
    trainer |= {"rng": {"torch": torch.zeros(1)}, "scheduler": {0: {"norm.bias": torch.ones(1)}}}
    torch.save(content | trainer | {"args": HINTS}, tmp_path / "a.pth")
    read = read_tensors(tmp_path / "a.pth")
    assert read.keys() == foreign.keys()
    assert all(torch.equal(tensor, foreign[name]) for name, tensor in read.items())


def test_an_averaged_models_counter_is_no_weight(foreign: dict[str, Tensor]) -> None:
    averaged = {"n_averaged": torch.tensor(7), "steps": torch.tensor(7)}
    averaged |= {f"module.{name}": tensor for name, tensor in foreign.items()}
    assert encoder_from_foreign(averaged, hints=HINTS)[1].keys() == Encoder(CONFIG).state_dict().keys()


def test_of_several_state_dicts_the_models_is_taken_and_said_or_none_is_chosen(
    foreign: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    average = {name: tensor + 1 for name, tensor in foreign.items()}
    for content, taken, left in (
        ({"model_ema": average, "model": foreign}, "model", "model_ema"),
        ({"ema": {"state_dict": average}, "state_dict": foreign}, "state_dict", "ema.state_dict"),
    ):
        torch.save(content, tmp_path / "a.pth")
        assert torch.equal(read_tensors(tmp_path / "a.pth")["norm.bias"], foreign["norm.bias"])
        assert re.search(rf" {taken} \(\d+ tensors\) is taken, .*; left out: {left} \(\d+ tensors\)", caplog.text)
    torch.save({"model": {"a": foreign, "b": average}, "state_dict": foreign}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"several state dicts, \S+ \(\d+ tensors\), \S+ \(.*: .*a\.pth#state_dict"):
        read_tensors(tmp_path / "a.pth")


def test_an_average_beside_a_model_without_a_prefix_is_left_out(
    foreign: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    average = {f"ema_model.{name}": tensor + 1 for name, tensor in foreign.items()}
    state = encoder_from_foreign(foreign | average, hints=HINTS)[1]
    assert torch.equal(state["norm.bias"], foreign["norm.bias"])
    assert "left out: ema_model. (" in caplog.text


def test_the_model_that_is_meant_is_named_behind_the_file(foreign: dict[str, Tensor], tmp_path: Path) -> None:
    def plus(i: int, prefix: str = "") -> dict[str, Tensor]:
        return {f"{prefix}{name}": tensor + i for name, tensor in foreign.items()}

    predictor = {"predictor_blocks.0.norm1.weight": torch.zeros(2)}
    content: dict[str, Any] = {"state_dict": plus(0), "state_dict_ema": plus(1), "predictor": predictor}
    content |= {
        "callbacks": {"EMA": {"ema_weights": plus(2, "model.")}},
        "ssl": plus(3, "student.") | plus(4, "teacher."),
    }
    file = tmp_path / "a.ckpt"
    torch.save(content | {"args": HINTS}, file)
    (tmp_path / "odd#name.ckpt").write_bytes(file.read_bytes())
    for key, i in {
        **{"": 0, "#state_dict": 0, "#state_dict_ema": 1, "#callbacks": 2, "#callbacks.EMA.ema_weights.model": 2},
        **{"#ssl.student": 3, "#ssl.teacher": 4, "#ssl": 4},
    }.items():
        encoder = open_encoder(f"{file}{key}")
        torch.testing.assert_close(encoder.norm.bias.detach(), foreign["norm.bias"] + i)
    assert torch.equal(open_encoder(tmp_path / "odd#name.ckpt").norm.bias, foreign["norm.bias"])
    assert content_hash(file) != content_hash(f"{file}#state_dict_ema") != content_hash(f"{file}#ssl")
    for key, said in (
        ("teacher", "no tensors under #teacher; names begin with blocks"),
        ("predictor", "no known names"),
    ):
        with pytest.raises(WeightsError, match=said):
            open_encoder(f"{file}#{key}")
    torch.save({"ema": plus(5), "predictor": predictor, "args": HINTS}, tmp_path / "ema.pth")
    torch.testing.assert_close(open_encoder(tmp_path / "ema.pth").norm.bias.detach(), foreign["norm.bias"] + 5)
    save_model(Classifier(ClassifierConfig.of(CONFIG, num_classes=2)), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match="one model, of ours: leave #encoder out"):
        open_encoder(f"{tmp_path / 'own.safetensors'}#encoder")
    save_file(plus(3, "student.") | plus(4, "teacher."), tmp_path / "b.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 3}')
    for key, i in (("", 4), ("#student", 3), ("#teacher", 4)):
        encoder = open_encoder(f"{tmp_path / 'b.safetensors'}{key}")
        torch.testing.assert_close(encoder.norm.bias.detach(), foreign["norm.bias"] + i)


def test_names_that_several_projects_share_are_refused_unless_described() -> None:
    """Their mean and std differ, and a wrong one is seen in no message."""
    state = shared_names()
    assert recognise(state) == "pyslowfast"
    for told in (state, state | {"head.weight": torch.zeros(2, 8)}, state | {"cls_token": torch.zeros(1, 1, 8)}):
        with pytest.raises(ConvertError, match=r"PySlowFast, V-JEPA and others .*nothing in the file"):
            recognise(told, described=False)
    assert recognise(state | {"pos_embed_spatial": torch.zeros(1, 4, 8)}, described=False) == "pyslowfast"
    with pytest.raises(ConvertError, match="V-JEPA"):
        encoder_from_foreign(state, hints=HINTS)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("patch_embed.proj.weight", (8, 3, 16, 16), "an image ViT.*--init_inflate mean.*--encoder timm:NAME"),
        ("patch_embed.proj.weight", (8, 3, 2, 16, 14), r"\(width, channels, frames, p, p\)"),
        ("patch_embed.proj.weight", (8, 3), r"\(width, channels, frames, p, p\)"),
    ],
)
def test_patches_of_another_shape_are_refused_with_it(name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(ConvertError, match=told) as error:
        encoder_from_foreign(
            shared_names() | {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16), name: torch.zeros(shape)}
        )
    assert str(shape) in str(error.value)


def test_unknown_names_are_told_with_shapes_and_the_closest_format() -> None:
    state = {"blocks.3.norm1.weight": torch.zeros(8), "x": torch.zeros(2, 3)}
    with pytest.raises(ConvertError, match=r"norm1\.weight \(8,\), .*x \(2, 3\)\); closest to \w+, of whose names"):
        recognise(state)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (fractions.Fraction(1, 3), r"fractions\.Fraction"),
        (CONFIG, "EncoderConfig"),
        (os.system, r"posix\.system"),
    ],
)
def test_a_refused_pickle_says_what_was_refused(thing: Any, name: str, tmp_path: Path) -> None:
    content, file = {"model": {"a": torch.zeros(1)}, "config": thing}, tmp_path / "a.ckpt"
    for write in (
        lambda: torch.save(content, file),
        lambda: torch.save(content, file, _use_new_zipfile_serialization=False),
        lambda: file.write_bytes(pickle.dumps(thing, protocol=2)),
    ):
        write()
        with pytest.raises(WeightsError, match=f"refused, it holds an object of .*{name}.*save its state dict alone"):
            read_tensors(file)
