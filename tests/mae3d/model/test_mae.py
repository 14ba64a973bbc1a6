"""mae3d.model.mae: the loss is the formula, hidden pixels are not seen, precisions, compilation."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise, predicted_ids, random_mask, running_cell
from mae3d.model.patches import target_frames

TINY: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16",
    "img_size": 16,
    "patch_size": 4,
    "num_frames": 8,
    "depth": 1,
    "decoder_depth": 1,
    "mask_ratio": 0.75,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_pix_loss": False, "pred_t_dim": 8},
    {"sep_pos_embed": False, "cls_embed": False},
    {"sep_pos_embed": False, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"qkv_bias": False, "trunc_init": True, "pred_t_dim": 4, "pos_init": "sines"},
]


def tiny(**settings: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(MAEConfig(**(TINY | settings)))


def batch_of(model: MAE, batch: int = 2) -> tuple[Tensor, Tensor]:
    clip = torch.randint(0, 256, (batch, 8, 16, 16, 3), dtype=torch.uint8)
    noise = mask_noise(seed=0, epoch=0, positions=range(batch), views=1, tokens=model.config.num_tokens)
    return clip, noise


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_formula_written_with_loops(variant: dict[str, Any]) -> None:
    model = tiny(**variant)
    config = model.config
    clip, noise = batch_of(model)
    out = model(clip, noise, full=True)
    pixels = (clip.numpy() / 255.0 - np.array(config.mean)) / np.array(config.std)
    pixels = pixels[:, target_frames(config.num_frames, config.pred_t_dim)]
    errors = []
    for b in range(len(clip)):
        for token in out.mask[b].nonzero()[:, 0].tolist():
            t, row, column = token // 16, token // 4 % 4, token % 4
            u, p = config.pred_u, config.patch_size
            patch = pixels[b, t * u : (t + 1) * u, row * p : (row + 1) * p, column * p : (column + 1) * p].reshape(-1)
            if config.norm_pix_loss:
                patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            errors.append(np.square(out.pred[b, token].detach().numpy() - patch).mean())
    np.testing.assert_allclose(out.loss.item(), np.mean(errors), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_and_that_full_is_the_short_path_put_in_order(variant: dict[str, Any]) -> None:
    model = tiny(**variant)
    clip, noise = batch_of(model)
    short, full = model(clip, noise), model(clip, noise, full=True)
    values = model.config.pred_u * 16 * 3
    assert short.pred.shape == (2, 48, values)
    assert full.pred.shape == (2, 64, values)
    assert full.latent.shape == (2, 16, 192)
    masked = random_mask(noise, 0.75).ids_masked
    torch.testing.assert_close(full.pred[torch.arange(2)[:, None], masked], short.pred, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(full.loss, short.loss)
    assert torch.equal(full.ids_restore, short.ids_restore)


def test_hidden_pixels_change_the_loss_but_not_the_prediction() -> None:
    model = tiny()
    clip, noise = batch_of(model, 1)
    hidden = random_mask(noise, 0.75).ids_masked[0, 0].item()
    t, row, column = hidden // 16, hidden // 4 % 4, hidden % 4
    other = clip.clone()
    other[:, 2 * t : 2 * t + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 2] ^= 255
    a, b = model(clip, noise), model(other, noise)
    assert torch.equal(a.pred, b.pred)
    assert a.loss != b.loss


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny()
    model(*batch_of(model)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_decoders_class_token_starts_at_zero_and_is_learned() -> None:
    model = tiny()
    assert not model.decoder.cls_token.any()
    assert model.decoder.cls_token.requires_grad


def test_a_module_cast_to_bfloat16_keeps_loss_and_targets_in_float32() -> None:
    model = tiny()
    clip, noise = batch_of(model)
    exact = model(clip, noise).loss.item()
    out = model.bfloat16()(clip, noise)
    assert (out.loss.dtype, out.pred.dtype, out.mask.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert out.loss.item() == pytest.approx(exact, rel=2e-3)
    out.loss.backward()
    assert model.encoder.patch_embed.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(model.targets(clip, None), tiny().targets(clip, None), atol=0, rtol=0)


def test_autocast() -> None:
    model = tiny()
    clip, noise = batch_of(model)
    exact = model(clip, noise).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(clip, noise)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[1:4])
def test_the_graph_is_whole(variant: dict[str, Any]) -> None:
    """`fullgraph=True` fails at any Python that depends on data; the backend does not matter for that."""
    model = tiny(**variant)
    clip, noise = batch_of(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clip, noise).loss, model(clip, noise).loss)


def test_checkpointing_changes_no_gradient() -> None:
    model = tiny()
    clip, noise = batch_of(model)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(clip, noise).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert model.decoder.blocks.checkpointing


def test_a_decoder_without_attention_predicts_the_same_for_the_tokens_that_it_is_left() -> None:
    """With no blocks each token is on its own: the loss is the full decoder's, over the running cell alone."""
    complete, part = tiny(decoder_depth=0), tiny(decoder_depth=0, decoder_mask_ratio=0.5)
    clip, noise = batch_of(complete)
    assert part.state_dict().keys() == complete.state_dict().keys()
    masked = random_mask(noise, 0.75).ids_masked
    ids = predicted_ids(masked, running_cell(complete.config.grid), 24)
    full, out = complete(clip, noise, full=True), part(clip, noise)
    assert out.pred.shape == (2, 24, 48)
    torch.testing.assert_close(out.pred, full.pred[torch.arange(2)[:, None], ids])
    torch.testing.assert_close(out.loss, complete.loss(clip, out.pred, ids))
    assert not torch.isclose(out.loss, full.loss, rtol=1e-4)
    assert torch.equal(out.mask, full.mask)


@pytest.mark.slow
def test_decoder_masking_shortens_the_decoder_in_training_only() -> None:
    complete, part = tiny(), tiny(decoder_mask_ratio=0.5)
    clip, noise = batch_of(complete)
    lengths = []
    part.decoder.norm.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    part.decoder.blocks.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    part(clip, noise).loss.backward()
    assert lengths == [1 + 16 + 24, 24]  # class token, visible, predicted
    assert [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()] == []
    ours, theirs = part(clip, noise, full=True), complete(clip, noise, full=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clip, noise).loss, part(clip, noise).loss)


def test_training_takes_the_last_block_no_further_than_the_loss_needs() -> None:
    model = tiny(decoder_depth=2)
    clip, noise = batch_of(model)
    lengths: list[int] = []
    for module in (block.mlp for block in model.decoder.blocks):
        module.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    assert model(clip, noise).pred.shape[1] == 48
    assert model(clip, noise, full=True).pred.shape[1] == 64
    assert lengths == [1 + 64, 48, 1 + 64, 64]  # all tokens and the class token, then those that are predicted


def test_a_few_steps_learn_a_clip() -> None:
    model = tiny(norm_pix_loss=False)
    clip, noise = batch_of(model)
    clip[:] = torch.linspace(0, 255, 16).to(torch.uint8)[:, None]  # a gradient along one axis
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(clip, noise).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "variant",
    [
        {"mask_type": "block", "decoder_mask_ratio": 0.5, "sep_pos_embed": False, "decoder_sep_pos_embed": False},
        {"rope": "vjepa2", "mask_type": "tube", "norm_pix_loss": False},
    ],
)
def test_nothing_of_a_step_is_made_on_the_cpu_for_a_gpu(variant: dict[str, Any]) -> None:
    """Tensors without pixels stand for a GPU's: an operation on two devices fails as it would there."""
    model, there = tiny(**variant), torch.device("cuda", 0)
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad(), fake:
        state = {name: fake.from_tensor(tensor).to(there) for name, tensor in tensors.items()}
        noise = torch.empty(2, model.config.num_tokens, device=there)
        for kind, full in ((torch.uint8, False), (torch.uint16, True)):
            clip = torch.empty(2, 8, 16, 16, 3, dtype=kind, device=there)
            out: Any = functional_call(model, state, (clip, noise), {"full": full})
            assert {value.device for value in out} == {there}


@pytest.mark.gpu
def test_the_gpu_makes_the_same_mask_and_the_same_loss() -> None:
    model = tiny()
    clip, noise = batch_of(model)
    noise[0, :32] = 0.5  # ties
    a = model(clip, noise)
    b = model.cuda()(clip.cuda(), noise.cuda())
    assert torch.equal(a.ids_restore, b.ids_restore.cpu())
    assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-3)  # TF32 or not
