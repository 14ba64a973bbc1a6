"""Encoders that Hugging Face's transformers saves compute here what they do there: V-JEPA 2, ViT, ViTMAE, DINOv2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mae3d.analysis.attention import layer_attention, query_of
from mae3d.analysis.features import embed
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.files import open_encoder, save_model
from mae3d.weights.frames import open_frame_encoder
from mae3d.weights.inflate import Inflate
from mae3d.weights.resize import load_encoder, resized_encoder

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}


def drawn(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def vjepa2(**settings: Any) -> Any:
    config = transformers.VJEPA2Config(crop_size=64, frames_per_clip=8, **(SIZES | PREDICTOR | settings))
    return drawn(transformers.VJEPA2Model(config))


def normalised(clip: Tensor) -> Tensor:
    """Return (B, T, 3, H, W) as transformers take videos."""
    return ((clip / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 1, 4, 2, 3)


def clip_of(encoder: Any, *, still: bool = False) -> Tensor:
    size, frames = encoder.config.img_size, encoder.config.num_frames
    clip = torch.randint(256, (2, 1 if still else frames, size, size, 3), dtype=torch.uint8)
    return clip.expand(-1, frames, -1, -1, -1)


def in_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' V-JEPA 2 as facebookresearch/vjepa2 saves it, wrapped by its trainer."""
    theirs = {}
    for name, tensor in state.items():
        if not name.startswith("encoder.") or ".key." in name or ".value." in name:
            continue
        if ".query." in name:
            tensor = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
        renames = {"encoder.embeddings.patch_embeddings": "patch_embed", "encoder.layer.": "blocks."}
        renames |= {"encoder.layernorm": "norm", "attention.query": "attn.qkv", "attention.": "attn."}
        for old, new in renames.items():
            name = name.replace(old, new)
        theirs[f"module.backbone.{name}"] = tensor
    return theirs


@pytest.mark.parametrize("heads", [2, 4, 1])  # widths of 24, 12 and 48: with and without a rest that is not turned
def test_v_jepa_2_in_transformers_names_and_its_own(tmp_path: Path, heads: int) -> None:
    model = vjepa2(num_attention_heads=heads)
    model.save_pretrained(tmp_path)
    ours = open_encoder(tmp_path)
    assert isinstance(ours, Encoder)
    assert (ours.config.grid, ours.config.mean, ours.config.std) == ((4, 4, 4), MEAN, STD)
    clip = clip_of(ours)
    with torch.no_grad():
        expected = model(normalised(clip), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(embed(ours, clip, pool="tokens"), expected, rtol=1e-5, atol=1e-5)
    encoder = in_original_names(model.state_dict())
    context = {name: tensor + 1 for name, tensor in encoder.items()}
    content = {"encoder": context, "target_encoder": encoder, "predictor": {"module.backbone.norm.weight": MEAN}}
    torch.save({**content, "epoch": 3}, tmp_path / "vitl.pt")  # beside config.json, which has the heads
    original = open_encoder(tmp_path / "vitl.pt")
    assert torch.equal(embed(original, clip), embed(ours, clip))
    other = open_encoder(f"{tmp_path / 'vitl.pt'}#encoder")
    assert torch.equal(other.norm.bias, ours.norm.bias + 1)


def test_v_jepa_2_at_another_size_trained_saved_and_looked_into(tmp_path: Path) -> None:
    model = vjepa2()
    model.save_pretrained(tmp_path)
    ours = open_encoder(tmp_path)
    larger = resized_encoder(ours, img_size=96, num_frames=4)
    clip = clip_of(larger)
    again = drawn(transformers.VJEPA2Model(transformers.VJEPA2Config(crop_size=96, **(SIZES | PREDICTOR))))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        inputs = normalised(clip)
        expected = again(inputs, skip_predictor=True).last_hidden_state
        attentions = again.encoder.layer[0].norm1(again.encoder.embeddings(inputs))
        again.encoder.layer[0].attention.config._attn_implementation = "eager"
        attentions = again.encoder.layer[0].attention(attentions)[1]
    torch.testing.assert_close(embed(larger, clip, pool="tokens"), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(larger, Encoder)
    weights = layer_attention(larger, clip, query_of(larger.config, "1,2,3"), layer=1)
    torch.testing.assert_close(weights, attentions[:, :, 36 + 15], rtol=1e-5, atol=1e-5)
    classifier = Classifier(ClassifierConfig.of(larger.config, num_classes=3))
    load_encoder(classifier, ours)
    save_model(classifier, tmp_path / "classifier.safetensors")
    assert torch.equal(embed(open_encoder(tmp_path / "classifier.safetensors"), clip), embed(larger, clip))


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "ViTMAE"])
def test_image_models_of_transformers_inflate(tmp_path: Path, name: str) -> None:
    hidden = {"mlp_ratio": 2} if name == "Dinov2" else {"intermediate_size": 96}
    settings = SIZES | hidden | {"image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6}
    settings |= {"mask_ratio": 0.0} if name == "ViTMAE" else {}
    model = drawn(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings)))
    model.save_pretrained(tmp_path)
    pixels = '{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    (tmp_path / "preprocessor_config.json").write_text(pixels)
    assert load_file(tmp_path / "model.safetensors")["embeddings.patch_embeddings.projection.weight"].ndim == 4
    ours = open_encoder(tmp_path, inflate=Inflate("mean", 2, 2))
    clip = clip_of(ours, still=True)
    with torch.no_grad():
        inputs = normalised(clip)[:, 0]
        # ViTMAE shuffles by this noise: in order it leaves the tokens where they are
        order = {"noise": torch.arange(4.0).expand(2, -1)} if name == "ViTMAE" else {}
        expected = model(inputs, **order).last_hidden_state[:, 1:]
    torch.testing.assert_close(embed(ours, clip, pool="tokens"), expected, rtol=1e-5, atol=1e-5)


def test_a_vit_of_transformers_is_timms_frame_encoder(tmp_path: Path) -> None:
    ours = open_frame_encoder("test_vit", "none", num_frames=1)
    width, depth = ours.config.embed_dim, ours.config.depth
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": ours.config.num_heads}
    sizes |= {"intermediate_size": ours.vit.blocks[0].mlp.fc1.out_features, "image_size": 160, "patch_size": 16}
    model = drawn(transformers.ViTModel(transformers.ViTConfig(**sizes, layer_norm_eps=1e-6)))
    model.save_pretrained(tmp_path)
    ours = open_frame_encoder("test_vit", str(tmp_path / "model.safetensors"), num_frames=1)
    clip = clip_of(ours)
    mean, std = torch.tensor(ours.config.mean), torch.tensor(ours.config.std)
    with torch.no_grad():
        expected = model(((clip[:, 0] / 255 - mean) / std).permute(0, 3, 1, 2)).last_hidden_state[:, 1:]
    torch.testing.assert_close(embed(ours, clip, pool="tokens"), expected, rtol=1e-5, atol=1e-5)
