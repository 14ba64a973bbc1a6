"""mae3d.weights.files: what is saved opens again; what cannot be opened safely is refused."""

import argparse
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.weights.convert import encoder_to_foreign, to_foreign
from mae3d.weights.files import WeightsError, find_model_file, load_model, open_encoder, save_model, save_weights

TINY: dict[str, Any] = {"preset": "mae_vit_tiny_patch16", "img_size": 32, "num_frames": 4, "mask_ratio": 0.5}


@pytest.fixture(scope="module")
def model() -> MAE:
    return MAE(MAEConfig(**TINY, depth=1, decoder_depth=1, mean=(0.5, 0.4, 0.3)))


def same(a: MAE, b: MAE) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_model_opens_as_it_was(model: MAE, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path):
        opened = load_model(path)
        assert same(opened, model)
        assert opened.config == model.config
        assert not opened.training
        assert all(p.requires_grad and p.dtype == torch.float32 for p in opened.parameters())


def test_no_random_weights_are_drawn_for_a_model_that_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device they would load torch's compiler."""
    model = MAE(MAEConfig(**TINY, depth=1, decoder_depth=1, pos_init="sines"))
    save_model(model, tmp_path / "model.safetensors")

    def drawn(*_: Any, **settings: Any) -> None:
        raise AssertionError(settings)

    monkeypatch.setattr("mae3d.model.encoder.sine_table", drawn)
    monkeypatch.setattr("torch.nn.init._no_grad_normal_", drawn)
    assert same(load_model(tmp_path), model)
    assert isinstance(open_encoder(tmp_path), torch.nn.Module)
    with pytest.raises(AssertionError):
        MAE(model.config)


def test_two_saves_are_the_same_bytes_and_nothing_else_is_left(model: MAE, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(model, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_config_is_readable_by_anyone(model: MAE, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        stored = json.loads(opened.metadata()["mae3d"])
    assert stored["config"]["img_size"] == 32


def test_bfloat16_weights_open_as_float32(model: MAE, tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_weights(state, model.config, tmp_path / "model.safetensors")
    weight = load_model(tmp_path).encoder.patch_embed.weight
    assert torch.equal(weight, model.encoder.patch_embed.weight.bfloat16().float())


def test_a_run_gives_its_latest_checkpoint(model: MAE, tmp_path: Path) -> None:
    step = tmp_path / "checkpoints" / "step-00000100"
    step.mkdir(parents=True)
    save_model(model, step / "model.safetensors")
    (tmp_path / "checkpoints" / "latest").write_text("step-00000100\n")
    assert find_model_file(tmp_path) == find_model_file(step) == step / "model.safetensors"
    assert same(load_model(tmp_path), model)
    for name in ("step-00000200", "../../elsewhere"):
        (tmp_path / "checkpoints" / "latest").write_text(name)
        with pytest.raises(WeightsError, match=name):
            find_model_file(tmp_path)


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file or folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"checkpoints/latest.*run with a checkpoint"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(model: MAE, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["decoder.more"] = state.pop("decoder.mask_token")
    save_weights(state, model.config, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.mask_token"):
        load_model(tmp_path)


def test_a_failed_save_leaves_the_old_file(model: MAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_model(MAE(model.config), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_into_a_missing_folder_is_an_oserror(model: MAE, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        save_model(model, tmp_path / "missing" / "model.safetensors")


@pytest.mark.parametrize("key", ["model", "model_state", "module", None])
def test_a_foreign_checkpoint_with_its_namespace_opens(model: MAE, tmp_path: Path, key: str | None) -> None:
    config = MAEConfig(**TINY, norm_pix_loss=False)
    source = MAE(config)
    foreign = to_foreign(source.state_dict(), config, format="mae_st")
    args = argparse.Namespace(norm_pix_loss=False, decoder_num_heads=3, mask_ratio=0.5, batch_size=4)
    torch.save({key: foreign, "epoch": 99, "args": args} if key else foreign, tmp_path / "foreign.pth")
    opened = load_model(tmp_path / "foreign.pth", config=None if key else config)
    assert opened.config == config
    assert same(opened, source)


def test_foreign_safetensors_open(tmp_path: Path) -> None:
    config = MAEConfig(**TINY)
    source = MAE(config)
    save_file(to_foreign(source.state_dict(), config, format="mae_st"), tmp_path / "foreign.safetensors")
    assert same(load_model(tmp_path / "foreign.safetensors", config=config), source)


def test_a_description_beside_that_is_no_json_is_named(tmp_path: Path) -> None:
    torch.save({"norm.bias": torch.zeros(1)}, tmp_path / "foreign.pth")
    (tmp_path / "config.json").write_text("{kind: MAE}")
    with pytest.raises(WeightsError, match=r"config\.json: no JSON \(.*move foreign\.pth away from it"):
        load_model(tmp_path / "foreign.pth")


def test_a_foreign_key_that_is_left_over_is_named(tmp_path: Path) -> None:
    config = MAEConfig(**TINY)
    foreign = to_foreign(MAE(config).state_dict(), config, format="mae_st") | {"head.weight": torch.zeros(2, 2)}
    torch.save({"model": foreign, "args": argparse.Namespace(mask_ratio=0.5)}, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match=r"left over: head\.weight"):
        load_model(tmp_path / "foreign.pth")


class Bomb:
    """An object that removes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.rmtree, (str(self.folder),)


@pytest.mark.parametrize("torch_format", [True, False])
def test_fault_32_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, torch_format: bool) -> None:
    target, path = tmp_path / "precious", tmp_path / "evil.pth"
    target.mkdir()
    content = {"model": {}, "args": Bomb(target)}
    if torch_format:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="refused"):
        load_model(path)
    assert target.is_dir()


def test_fault_32_a_torch_that_may_run_pickled_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    for version, message in (("2.5.1+cu121", "install torch 2.6"), ("2.10.0", "no known names")):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(WeightsError, match=message):
            load_model(tmp_path / "a.pth")


@pytest.mark.parametrize("format", ["mae_st", "pyslowfast"])
def test_a_checkpoint_without_a_decoder_gives_its_encoder(model: MAE, tmp_path: Path, format: str) -> None:
    state = encoder_to_foreign(model.encoder.state_dict(), model.config, format=format)
    torch.save({"model": state, "args": {"num_heads": 3}}, tmp_path / "foreign.pth")
    encoder = open_encoder(tmp_path / "foreign.pth")
    ours = model.encoder.state_dict()
    assert encoder.state_dict().keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in encoder.state_dict().items())
    assert (encoder.config.img_size, encoder.config.num_heads) == (32, 3)
    with pytest.raises(WeightsError, match=r"no tensor 'decoder_embed\.weight'.*an encoder alone"):
        load_model(tmp_path / "foreign.pth")


def test_an_encoder_of_our_own_file(model: MAE, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors")
    encoder = open_encoder(tmp_path)
    assert torch.equal(encoder.patch_embed.weight, model.encoder.patch_embed.weight)
    assert not encoder.training


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"no tensors .* keys: \['epoch'\]"):
        load_model(tmp_path / "empty.pth")
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 8), "extra": {"a": 1}}}, tmp_path / "extra.pth")
    with pytest.raises(WeightsError, match=r"left over, no tensors: extra; save the tensors alone"):
        load_model(tmp_path / "extra.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        load_model(tmp_path / "list.pth")


def test_a_model_with_a_decoder_mask_opens_and_trains_on(tmp_path: Path) -> None:
    config = MAEConfig(
        preset="mae_vit_tiny_patch16", img_size=32, depth=1, num_frames=4, mask_ratio=0.5, decoder_mask_ratio=0.5
    )
    save_model(MAE(config), tmp_path / "model.safetensors")
    opened = load_model(tmp_path)
    clip = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    opened(clip, torch.rand(1, config.num_tokens)).loss.backward()
    assert opened.config == config
