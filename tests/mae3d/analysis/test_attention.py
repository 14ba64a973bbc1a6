"""Probabilities are those that the blocks apply, for any query, chunk and layer."""

import pytest
import torch
from torch import Tensor, nn

from mae3d.analysis import attention
from mae3d.analysis.attention import block_of, layer_attention, query_of, rollout
from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder

CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=6, depth=3)  # 3 x 2 x 2 tokens and cls


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(CONFIG).requires_grad_(False)
    for block in encoder.blocks:  # a fresh model attends almost evenly
        block.attn.qkv.weight.mul_(4)
    return encoder.eval()


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return torch.randint(0, 256, (2, 6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def naive(encoder: Encoder, clip: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Compute each block's (B, heads, N, N) attention in float64, and record what the block's attention returned."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(_: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(made)

    hooks = [block.attn.register_forward_hook(note) for block in encoder.blocks]
    encoder(clip)
    for hook in hooks:
        hook.remove()
    matrices = []
    for block, x in zip(encoder.blocks, inputs, strict=True):
        width, heads = x.shape[-1], CONFIG.num_heads
        weight, bias = block.attn.qkv.weight.double(), block.attn.qkv.bias.double()
        q, k = ((x.double() @ weight[i : i + width].T + bias[i : i + width]) for i in (0, width))
        q, k = (part.view(*x.shape[:2], heads, width // heads).transpose(1, 2) for part in (q, k))
        matrices.append((q @ k.transpose(-2, -1) / (width // heads) ** 0.5).softmax(-1))
    return list(zip(matrices, outputs, strict=True))


def one_hot(token: int) -> Tensor:
    return torch.eye(1 + CONFIG.num_tokens)[token]


@pytest.mark.parametrize("layer", [1, 2, 3, -1, -3])
def test_a_layers_rows_are_its_attention(encoder: Encoder, clip: Tensor, layer: int) -> None:
    expected = naive(encoder, clip)[block_of(CONFIG, layer)][0]
    assert expected.amax() > 3 / expected.shape[-1]  # far from even
    for token in range(expected.shape[-1]):
        maps = layer_attention(encoder, clip, one_hot(token), layer=layer)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps.double(), expected[:, :, token], atol=1e-5, rtol=1e-4)


def test_with_the_values_the_rows_make_the_blocks_own_output(encoder: Encoder, clip: Tensor) -> None:
    x, applied = encoder.embed(clip), naive(encoder, clip)[0][1]
    block = encoder.blocks[0]
    values = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)[2].unflatten(-1, (CONFIG.num_heads, -1))
    for token in (0, 5):
        maps = layer_attention(encoder, clip, one_hot(token), layer=1)
        mixed = torch.einsum("bhn,bnhd->bhd", maps, values).flatten(1)
        torch.testing.assert_close(block.attn.proj(mixed), applied[:, token], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("query", ["cls", "2,0,1", "mean"])
def test_rollout_is_the_querys_row_of_the_product(encoder: Encoder, clip: Tensor, query: str) -> None:
    weights = query_of(CONFIG, query)
    product = torch.eye(1 + CONFIG.num_tokens, dtype=torch.float64).expand(2, -1, -1)
    for matrix, _ in naive(encoder, clip):
        mixed = 0.5 * matrix.mean(dim=1) + 0.5 * torch.eye(1 + CONFIG.num_tokens)
        product = mixed / mixed.sum(-1, keepdim=True) @ product
    paths = rollout(encoder, clip, weights)
    torch.testing.assert_close(paths.double(), weights.double() @ product, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(paths.sum(-1), torch.ones(2))


def test_the_mean_is_that_of_the_patches_rows(encoder: Encoder, clip: Tensor) -> None:
    maps = layer_attention(encoder, clip, query_of(CONFIG, "mean"), layer=2)
    expected = naive(encoder, clip)[1][0][:, :, 1:].mean(dim=2)
    torch.testing.assert_close(maps.double(), expected, atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing(encoder: Encoder, clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    unchunked = (
        layer_attention(encoder, clip, query_of(CONFIG, "mean")),
        rollout(encoder, clip, query_of(CONFIG, "cls")),
    )
    monkeypatch.setattr(attention, "_MAX_PROBABILITIES", 2 * CONFIG.num_heads * 13 * 5)  # 5 queries at a time
    pieces = layer_attention(encoder, clip, query_of(CONFIG, "mean")), rollout(encoder, clip, query_of(CONFIG, "cls"))
    torch.testing.assert_close(pieces, unchunked, atol=1e-7, rtol=1e-5)


def test_no_matrix_of_all_queries_is_held(encoder: Encoder, clip: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MAX_PROBABILITIES", 2 * CONFIG.num_heads * 13 * 4)
    shapes = []
    softmax = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda self, dim: (shapes.append(self.shape), softmax(self, dim))[1])
    layer_attention(encoder, clip, query_of(CONFIG, "mean"))
    assert [shape[2] for shape in shapes] == [4, 4, 4]


def test_training_mode_drops_nothing_and_is_left_on(clip: Tensor) -> None:
    encoder, query = Encoder(CONFIG, drop_path=0.9), query_of(CONFIG, "mean")
    expected = rollout(encoder.eval(), clip, query)
    encoder.train()
    torch.testing.assert_close(rollout(encoder, clip, query), expected, atol=0, rtol=0)
    assert encoder.training
    assert encoder.blocks[0].training


def test_a_patch_is_found_at_its_slot_row_and_column() -> None:
    config = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=48, num_frames=8, cls_embed=False)  # 4 x 3 x 3
    query = query_of(config, "2,0,1")
    assert query.nonzero().tolist() == [[2 * 9 + 1]]
    assert query_of(CONFIG, "2,0,1").nonzero().tolist() == [[1 + 2 * 4 + 1]]
    assert query_of(config, "mean").tolist() == pytest.approx([1 / 36] * 36)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cls", "no class token"),
        ("3,2,2", "3 slots, 2 rows and 2 columns"),
        ("-1,0,0", "3 slots"),
        ("1,1", "T,Y,X"),
        ("first", "give cls, mean or T,Y,X"),
    ],
)
def test_wrong_queries_are_refused(text: str, message: str) -> None:
    config = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=6, cls_embed=False)
    with pytest.raises(ValueError, match=message):
        query_of(config, text)


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_missing_layers_are_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer {layer}: .* 3 blocks.*1 to 3"):
        block_of(CONFIG, layer)
