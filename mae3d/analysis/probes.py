"""Simple probes measure how much of the labels the frozen features of a train and a test set contain.

features, targets of the train set; features of the test set ─► scores of the test set

    scores = knn_scores(train, targets, test)[20]                              # (m, C)
    scores, chosen = linear_scores(train, targets, test, multi_label=False)        # chosen: {"C": 0.01, ...}
    scores, chosen = attentive_scores(train_tokens, targets, test_tokens, multi_label=False, device=device)

Every probe is fixed and makes its choices on the train set, so that numbers of two models can be compared.
mae3d.analysis.scores judges the scores. No number of threads changes a bit of them. n train and m test samples, D
width, L tokens, C classes; targets are (n, C) of 0 and 1, one 1 per row unless `multi_label`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mae3d.analysis.exact import one_thread
from mae3d.analysis.features import unit
from mae3d.analysis.logistic import Samples, fit_path
from mae3d.analysis.scores import credit_at, mean_average_precision
from mae3d.io.progress import Progress
from mae3d.io.random import Stream, philox

KNN = (1, 5, 10, 20)  # k = 20 is DINO's (Caron et al. 2021, appendix F.1 and table 2)
PAIRS = 2**24  # pairs of a test and a train sample that are compared at a time, 16 bytes each
TEMPERATURE = 0.07  # temperature of the votes' weights: Wu et al. 2018, section 3.4
C_GRID = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C: 1 / strength of the L2 penalty
HELD_OUT = 0.2  # share of the train set on which C is chosen
EPOCHS, MIN_STEPS, BATCH, PEAK_LR, WEIGHT_DECAY = 20, 500, 64, 1e-3, 0.01  # the attentive probe's
SHOWN_EVERY = 50  # steps of the attentive probe between two looks at its loss, which wait for a GPU
PIECE = 8  # samples of a batch that one thread of a CPU computes

Array = NDArray[Any]


def knn_scores(
    train: Array, targets: Array, test: Array, *, ks: tuple[int, ...] = KNN, chunk: int = 1024, show: bool = False
) -> dict[int, Array]:
    """Let the k nearest train samples vote: cosine similarity s, weight exp(s / 0.07) (Wu et al. 2018; DINO).

    Args:
        train: (n, D).
        targets: (n, C).
        test: (m, D).
        ks: Numbers of neighbours; a number above n means n.
        chunk: Test samples at a time, fewer if they make more than `PAIRS`; the result depends on it by rounding only.
        show: Whether to show the progress on stderr.

    Returns:
        (m, C) float64 by k, each row divided by its weights: shares of the votes.
    """
    train, most = unit(train), min(max(ks), len(train))
    chunk = max(1, min(chunk, PAIRS // len(train)))
    scores = {k: np.zeros((len(test), targets.shape[1])) for k in ks}
    with one_thread(), Progress(len(test), "sample", doing="kNN", show=show) as advance:
        for start in range(0, len(test), chunk):
            similarity = unit(test[start : start + chunk]) @ train.T
            nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
            closest = np.take_along_axis(similarity, nearest, axis=1)
            order = np.argsort(-closest, axis=1, kind="stable")
            nearest, closest = (np.take_along_axis(values, order, axis=1) for values in (nearest, closest))
            # Weights are relative to the nearest one's: the same shares, and no overflow.
            weights = np.exp((closest.astype(np.float64) - closest[:, :1]) / TEMPERATURE)
            for k in ks:
                votes = np.einsum("mk,mkc->mc", weights[:, :k], targets[nearest[:, :k]].astype(np.float64))
                scores[k][start : start + chunk] = votes / weights[:, :k].sum(axis=1, keepdims=True)
            advance(min(chunk, len(test) - start))
    return scores


def linear_scores(
    train: Array,
    targets: Array,
    test: Array,
    *,
    multi_label: bool,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show: bool = False,
) -> tuple[Array, dict[str, Any]]:
    """Fit a logistic regression on standardised features (mae3d.analysis.logistic); one per class with `multi_label`.

    C is the value of `C_GRID` that is best (accuracy, or mAP with `multi_label`) on a fifth of the train set, of each
    class alike, drawn by the seed; the smallest of equal values. The final fit is on all of the train set. One sample
    per class leaves nothing to choose on: C is 1.

    Args:
        train: (n, D), may be mapped from a file: it is read in blocks.
        targets: (n, C).
        test: (m, D).
        multi_label: Whether a sample may have any number of labels.
        device: Device of the computation.
        seed: Seed that draws the fifth.
        show: Whether to show the progress on stderr: one step per fit.

    Returns:
        (m, C) probabilities, 0 for classes without a train sample; and the choice: C, its score on the fifth, and
        whether the last fit converged.

    Raises:
        ValueError: The train set has fewer than two classes.
    """
    if not multi_label and (targets.sum(axis=0) > 0).sum() < 2:
        raise ValueError("the train set has one class: give samples of two or more")
    held = held_out(targets, seed=seed)
    held_rows = np.flatnonzero(held)
    measure = _mean_precision if multi_label else _accuracy
    measured: dict[float, float] = {}
    c, best = 1.0, None
    fits_to_do = 1 + len(C_GRID) * bool(len(held_rows))
    with Progress(fits_to_do, "fit", doing="linear probe", show=show) as advance, one_thread() as spread:
        samples_of = partial(Samples, train, targets, multi_label=multi_label, spread=spread, device=device)
        if len(held_rows):
            for fit in fit_path(samples_of(np.flatnonzero(~held)), C_GRID):
                measured[fit.strength] = measure(fit.scores(train, held_rows), targets[held])
                if best is None or measured[fit.strength] > measured[c]:
                    c, best = fit.strength, fit
                advance(1, f"C={fit.strength:g}")
        (last,) = fit_path(samples_of(np.arange(len(train))), [c], start=best)
        scores = last.scores(test)
        advance(1, f"C={c:g}")
    return scores, {"C": c, "held_out": measured.get(c), "converged": last.converged}


def held_out(targets: Array, *, seed: int = 0) -> NDArray[np.bool_]:
    """Draw (n,): a fifth of the samples of each class, rounded; at least one of two or more, none of one alone.

    A sample with more than one label counts to its rarest; a sample without a label counts to a separate class.
    """
    rarity = np.where(targets > 0, targets.sum(axis=0), np.inf)
    classes = np.where((targets > 0).any(axis=1), rarity.argmin(axis=1), -1)
    luck = philox(seed, Stream.PROBE).random(len(targets))
    held = np.zeros(len(targets), dtype=bool)
    for number in np.unique(classes):
        of_class = np.flatnonzero(classes == number)
        count = max(round(HELD_OUT * len(of_class)), 1) if len(of_class) > 1 else 0
        held[of_class[np.argsort(luck[of_class])[:count]]] = True
    return held


def few_shot_rows(targets: Array, *, shots: int, seed: int) -> NDArray[np.int64]:
    """Draw ascending rows of K samples of each class, all if there are fewer; a seed's K are among its K' > K."""
    luck = philox(seed, Stream.PROBE).random(len(targets))
    by_class = (np.flatnonzero(column) for column in targets.T)
    chosen = [rows[np.argsort(luck[rows])[:shots]] for rows in by_class]
    return np.unique(np.concatenate(chosen)).astype(np.int64)


class AttentiveProbe(nn.Module):
    """A learned query that attends to all tokens, then a norm and a linear head: (B, L, D) ─► (B, C) logits.

    As in V-JEPA (Bardes et al. 2024, arXiv 2404.08471): cross-attention, an MLP with a residual, LayerNorm, a linear
    classifier; the pooling is timm's AttentionPoolLatent. Tokens are normalised first, for layers whose scale is free.
    """

    def __init__(self, width: int, num_classes: int, *, num_heads: int) -> None:
        super().__init__()
        from timm.layers import AttentionPoolLatent

        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=num_heads, mlp_ratio=4.0)
        self.out_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits with D x heads products per token, where the pooling's own way takes 2 D x D.

        With one query, keys and values need not be made: the query is multiplied into the weights of the keys, and
        those of the values come behind the average over the tokens. Biases of the keys move all tokens' scores alike.
        """
        pool, width = self.pool, tokens.shape[-1]
        normed = F.layer_norm(tokens, (width,), eps=self.norm.eps)
        of_keys, of_values = pool.kv.weight.view(2, pool.num_heads, -1, width)
        query = pool.scale * pool.q(pool.latent[0, 0]).view(pool.num_heads, -1)
        directions = torch.einsum("hd,hdw->hw", query, of_keys) * self.norm.weight
        attention = (normed @ directions.T).softmax(dim=1).transpose(1, 2)  # (B, heads, L)
        means = (attention @ normed) * self.norm.weight + self.norm.bias  # (B, heads, D)
        values = torch.einsum("bhw,hdw->bhd", means, of_values).flatten(1) + pool.kv.bias[width:]
        pooled = pool.proj(values)
        logits: Tensor = self.head(self.out_norm(pooled + pool.mlp(pool.norm(pooled))))
        return logits


def attentive_scores(
    train: Array,
    targets: Array,
    test: Array,
    *,
    multi_label: bool,
    num_heads: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show: bool = False,
) -> tuple[Array, dict[str, Any]]:
    """Train an `AttentiveProbe` for 20 epochs, 500 steps at least: AdamW, batches of 64, a cosine from 1e-3 to 0.

    Nothing is chosen, the test set is used once. A seed gives the same scores on the same machine and device.

    Args:
        train: (n, L, D) of any float type, may be mapped from a file: it is read batch by batch.
        targets: (n, C).
        test: (m, L, D).
        multi_label: Whether a sample may have any number of labels: binary cross-entropy instead of cross-entropy.
        num_heads: Number of attention heads; it divides D.
        device: Device of the training.
        seed: Seed of the weights and of the order.
        show: Whether to show the progress on stderr.

    Returns:
        (m, C) logits; and the number of steps and the last loss.
    """
    generator = philox(seed, Stream.PROBE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(train.shape[-1], targets.shape[1], num_heads=num_heads).to(device)
    batch = min(BATCH, len(train))
    an_epoch = -(-len(train) // batch)
    steps = max(EPOCHS * an_epoch, MIN_STEPS)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_of = nn.functional.binary_cross_entropy_with_logits if multi_label else nn.functional.cross_entropy
    many_hot = torch.from_numpy(targets.astype(np.float32)).to(device)
    parameters = list(probe.parameters())
    on_cpu = torch.device(device).type == "cpu"
    piece = PIECE if on_cpu else batch

    def gradients(rows: Array, *, batch_rows: int) -> list[Tensor]:
        """Compute the rows' share in their batch's loss, and its gradients."""
        loss = loss_of(probe(_tokens(train, rows, device)), many_hot[torch.from_numpy(rows).to(device)])
        loss = loss * (len(rows) / batch_rows)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    def logits_of(rows: Array) -> Tensor:
        with torch.no_grad():
            return probe(_tokens(test, rows, device)).cpu()

    with one_thread() as spread, Progress(steps, "step", doing="attentive probe", show=show) as advance:
        compute: Callable[..., Iterable[Any]] = spread if on_cpu else map
        for step in range(steps):
            if step % an_epoch == 0:
                order = generator.permutation(len(train))
            rows = np.sort(order[step % an_epoch * batch :][:batch])  # ascending: one pass over a mapped file
            parts = compute(partial(gradients, batch_rows=len(rows)), _pieces(rows, piece))
            loss, *summed = (sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
            for parameter, gradient in zip(parameters, summed, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            advance(1, *([f"loss {float(loss):.4g}"] if step % SHOWN_EVERY == 0 else []))
        probe.eval()
        logits = torch.cat(list(compute(logits_of, _pieces(np.arange(len(test)), piece))))
    return logits.numpy(), {"steps": steps, "last_loss": float(loss)}


def _pieces(rows: Array, size: int) -> list[Array]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _tokens(tokens: Array, rows: Array, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(tokens[rows])).to(device).float()


def _accuracy(scores: Array, targets: Array) -> float:
    return float(credit_at(scores, targets.argmax(axis=1), k=1).mean())


def _mean_precision(scores: Array, targets: Array) -> float:
    return float(np.nan_to_num(mean_average_precision(scores, targets.astype(np.int64))))
