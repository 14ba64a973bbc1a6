"""mae3d.analysis.features: the chosen layer, pooled as requested, of any model; nothing behind that layer is run."""

import pytest
import torch
from torch import Tensor, nn

import mae3d
from mae3d.analysis.features import embed
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE

SMALL = {"preset": "mae_vit_tiny_patch16", "img_size": 32, "num_frames": 4, "depth": 3}
CLIP = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["mae", "classifier", "encoder"])
def model(request: pytest.FixtureRequest) -> MAE | Classifier | Encoder:
    torch.manual_seed(3)
    built: MAE | Classifier | Encoder
    if request.param == "mae":
        built = MAE(MAEConfig(**SMALL, decoder_depth=1, cls_embed=True, mask_ratio=0.5))
    elif request.param == "classifier":
        built = Classifier(ClassifierConfig(**SMALL, num_classes=5, cls_embed=True, pooling="cls", drop_path=0.5))
    else:
        built = Encoder(EncoderConfig(**SMALL, cls_embed=True))
    encoder = built if isinstance(built, Encoder) else built.encoder
    nn.init.normal_(encoder.norm.weight)  # so that a norm left out is seen
    return built


def encoder_of(model: MAE | Classifier | Encoder) -> Encoder:
    return model if isinstance(model, Encoder) else model.encoder


def truncated(encoder: Encoder, blocks: int) -> Tensor:
    """Return all tokens after the first `blocks` blocks, from an encoder that has no more of them."""
    short = Encoder(EncoderConfig(**{**SMALL, "depth": blocks}, cls_embed=True)) if blocks else None
    if short is None:
        return encoder.embed(CLIP)
    short.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in short.state_dict()})
    return short.eval()(CLIP)


@torch.no_grad()
def test_the_last_layer_is_the_encoder_and_its_norm(model: MAE | Classifier | Encoder) -> None:
    encoder = encoder_of(model)
    tokens = encoder.eval()(CLIP)
    torch.testing.assert_close(embed(model, CLIP), encoder.norm(tokens[:, 1:].mean(dim=1)), rtol=0, atol=0)
    torch.testing.assert_close(embed(model, CLIP, pool="cls"), encoder.norm(tokens[:, 0]), rtol=0, atol=0)
    torch.testing.assert_close(embed(model, CLIP, pool="tokens"), encoder.norm(tokens[:, 1:]), rtol=0, atol=0)
    torch.testing.assert_close(embed(model, CLIP, layer=3), embed(model, CLIP, layer=-1), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_middle_layer_is_a_truncated_encoder_without_norm(model: MAE | Classifier | Encoder, layer: int) -> None:
    expected = truncated(encoder_of(model).eval(), layer)[:, 1:]
    torch.testing.assert_close(embed(model, CLIP, layer=layer, pool="tokens"), expected, rtol=0, atol=0)
    torch.testing.assert_close(embed(model, CLIP, layer=layer - 4), expected.mean(dim=1), rtol=0, atol=0)


def test_blocks_behind_the_layer_are_not_run(model: MAE | Classifier | Encoder) -> None:
    encoder, ran = encoder_of(model), []
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(encoder.blocks)]
    embed(model, CLIP, layer=1)
    for hook in hooks:
        hook.remove()
    assert ran == [0]


def test_what_the_classifier_sees() -> None:
    model = Classifier(ClassifierConfig(**SMALL, num_classes=5, cls_embed=True, pooling="mean")).eval()
    with torch.no_grad():
        torch.testing.assert_close(embed(model, CLIP), model.features(CLIP), rtol=0, atol=0)


def test_no_gradient_no_dropping_and_the_mode_stays(model: MAE | Classifier | Encoder) -> None:
    for training in (True, False):
        model.train(training)
        one, other = embed(model, CLIP), embed(model, CLIP)
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # the classifier drops half of its last block
        assert not one.requires_grad
        assert {module.training for module in model.modules()} == {training}


def test_reduced_precision_comes_out_as_float32(model: MAE | Classifier | Encoder) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = embed(model, CLIP)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, embed(model, CLIP), rtol=0.1, atol=0.1)


def test_clips_do_not_see_each_other(model: MAE | Classifier | Encoder) -> None:
    both = embed(model, CLIP)
    for i in range(2):
        torch.testing.assert_close(embed(model, CLIP[i : i + 1])[0], both[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [4, -5])
def test_no_such_layer(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer={layer}: the encoder has 3 blocks"):
        embed(Encoder(EncoderConfig(**SMALL)), CLIP, layer=layer)


def test_no_such_pooling() -> None:
    encoder = Encoder(EncoderConfig(**SMALL, cls_embed=False))
    with pytest.raises(ValueError, match="no class token"):
        embed(encoder, CLIP, pool="cls")
    with pytest.raises(ValueError, match="give mean, cls, tokens"):
        embed(encoder, CLIP, pool="max")


def test_it_is_there_by_its_name() -> None:
    assert mae3d.embed is embed
