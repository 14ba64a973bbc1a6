"""Files of other trainers are recognised for certain, whatever they are wrapped in, or refused with what was found."""

import fractions
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.convert import ConvertError, encoder_from_foreign, encoder_to_foreign
from mae3d.weights.files import WeightsError, read_tensors
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


def test_only_what_trainers_put_around_names_is_taken_off(foreign: dict[str, Tensor]) -> None:
    with pytest.raises(ConvertError, match=r"no known names of tensors \(vit\.blocks"):
        encoder_from_foreign({f"model.vit.{name}": tensor for name, tensor in foreign.items()}, hints=HINTS)
    beside = {f"backbone.{name}": tensor for name, tensor in foreign.items()} | {"criterion.weight": torch.zeros(2)}
    with pytest.raises(ConvertError, match=r"left over: criterion\.weight$"):
        encoder_from_foreign(beside, hints=HINTS)


def test_of_two_models_in_one_state_dict_none_is_chosen(foreign: dict[str, Tensor]) -> None:
    two = {f"module.{model}.{name}": tensor for model in ("student", "teacher") for name, tensor in foreign.items()}
    told = rf"several models, under student\. \({len(foreign)} tensors\), teacher\. \({len(foreign)} tensors\): save"
    with pytest.raises(ConvertError, match=told):
        encoder_from_foreign(two, hints=HINTS)


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
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{name}": tensor for name, tensor in foreign.items()}
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
        assert re.search(rf" {taken} \(\d+ tensors\) is taken; left out: {left} \(\d+ tensors\)", caplog.text)
    two = {"a": foreign, "b": average}
    for content in ({"encoder": foreign, "target_encoder": average}, {"model": two, "state_dict": foreign}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match=r"several state dicts, \S+ \(\d+ tensors\), \S+ \(.*: save the one"):
            read_tensors(tmp_path / "a.pth")


def test_names_that_several_projects_share_are_refused_unless_described() -> None:
    """Their mean and std differ, and a wrong one is seen in no message."""
    state = shared_names()
    assert recognise(state) == "pyslowfast"
    for told in (state, state | {"head.weight": torch.zeros(2, 8)}, state | {"cls_token": torch.zeros(1, 1, 8)}):
        with pytest.raises(ConvertError, match=r"V-JEPA, PySlowFast and others .*nothing in the file"):
            recognise(told, described=False)
    assert recognise(state | {"pos_embed_spatial": torch.zeros(1, 4, 8)}, described=False) == "pyslowfast"
    with pytest.raises(ConvertError, match="V-JEPA"):
        encoder_from_foreign(state, hints=HINTS)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("patch_embed.proj.weight", (8, 3, 16, 16), "image model"),
        ("vit.embeddings.patch_embeddings.projection.weight", (8, 3, 16, 16), "image model"),
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
        (Path("a"), r"pathlib\.\w*PosixPath"),
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
