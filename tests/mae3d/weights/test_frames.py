"""mae3d.weights.frames: weights of image ViTs from files under all of their names; nothing is fetched unrequested."""

import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae3d.weights.files import WeightsError
from mae3d.weights.frames import open_frame_encoder, state_hash


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any use of the network fail the test."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"the network was used: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def weights_of(name: str, **settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return dict(timm.create_model(name, **settings).state_dict())


def test_a_file_with_timms_names_is_read_as_timm_reads_it_at_another_size(tmp_path: Path) -> None:
    state = weights_of("test_vit")  # with a head of 1,000 classes
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "b.bin")
    theirs = timm.create_model("test_vit", img_size=32, num_classes=0)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(state, theirs)
    for file in ("a.safetensors", "b.bin"):
        encoder = open_frame_encoder("test_vit", str(tmp_path / file), num_frames=2, img_size=32)
        for name, tensor in encoder.vit.state_dict().items():
            assert torch.equal(tensor, filtered[name]), name
    assert not encoder.training


def test_dinov2s_own_names_are_read(tmp_path: Path) -> None:
    """Its checkpoints have timm's names, and a token for masks that timm's model lacks."""
    ours = open_frame_encoder("test_vit", "none", num_frames=1, img_size=32)
    state = ours.vit.state_dict()
    torch.save({**state, "mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    read = open_frame_encoder("test_vit", str(tmp_path / "dinov2.pth"), num_frames=1, img_size=32, seed=1)
    assert state_hash(read) == state_hash(ours)


def test_random_weights_are_the_seeds_and_a_hash_is_of_the_weights() -> None:
    first, same, other = (
        open_frame_encoder("test_vit", "none", num_frames=2, img_size=32, seed=seed) for seed in (0, 0, 1)
    )
    assert state_hash(first) == state_hash(same) != state_hash(other)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    save_file(weights_of("test_vit3"), tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"other\.safetensors.*timm:test_vit.*missing: cls_token.*left over: .*blocks"
    ):
        open_frame_encoder("test_vit", str(tmp_path / "other.safetensors"))
    state = weights_of("test_vit")
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"][:7]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"cut\.safetensors.*fc1\.weight is \(7, 64\)"):
        open_frame_encoder("test_vit", str(tmp_path / "cut.safetensors"))
    with pytest.raises(WeightsError, match=r"no such file.*test_vit"):
        open_frame_encoder("test_vit", str(tmp_path / "absent.pth"))


def test_only_a_requested_download_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(model_id: str, *arguments: Any, **settings: Any) -> dict[str, Tensor]:
        fetched.append(model_id)
        return weights_of("test_vit")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    open_frame_encoder("test_vit", "none", img_size=32)
    assert not fetched
    encoder = open_frame_encoder("test_vit", "download", img_size=32)
    assert fetched == ["timm/test_vit.r160_in1k"]
    assert torch.equal(encoder.vit.cls_token, weights_of("test_vit")["cls_token"])

    def fail(*arguments: Any, **settings: Any) -> dict[str, Tensor]:
        raise OSError("no route to the Hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(WeightsError, match=r"test_vit.*no route to the Hub"):
        open_frame_encoder("test_vit", "download", img_size=32)
