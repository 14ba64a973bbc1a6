"""Logistic regressions of many samples and classes on standardised features, which are read block by block.

with one_thread() as spread:
    samples = Samples(features, targets, rows, multi_label=False, spread=spread)
    for fit in fit_path(samples, (0.01, 1.0)):         # each begins where the last has ended
        scores = fit.scores(test)                       # (m, C) probabilities

The optimum is that of scikit-learn's LogisticRegression(C=c): mean loss + |weights|^2 / (2 c n), biases free; where
samples have any number of labels, of one such regression per class. scipy's L-BFGS looks for it in coordinates in which
the loss curves nearly alike everywhere: along an eigenvector of the features' covariance, of eigenvalue d, the loss of
a class with a share f of the samples curves by about f (1 - f) d, and the penalty adds 1 / (c n). It takes few steps,
then, however much features depend on each other. Beside the features, memory holds blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mae3d.analysis.exact import Spread

BLOCK = 2048  # samples that one thread computes at a time
BLOCKS_AT_ONCE = 16  # whose gradients are in memory before they are added up
MAX_ITERATIONS = 1000  # as in CLIP's linear probes (Radford et al. 2021, appendix A.3)
TOLERANCE = 1e-7  # relative decrease of the objective by one step, at which it ends

Array = NDArray[Any]


class Samples:
    """The samples of a fit, standardised by their own mean and deviation."""

    def __init__(
        self,
        features: Array,
        targets: Array,
        rows: Array,
        *,
        multi_label: bool,
        spread: Spread,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read the features twice, for their deviations and for their covariance.

        Args:
            features: (N, D), may be mapped from a file.
            targets: (N, C) of 0 and 1.
            rows: Ascending numbers of the n samples that take part.
            multi_label: Whether a sample may have any number of labels.
            spread: From `one_thread`.
            device: Device of the computation; a GPU holds all samples, a CPU one block per thread.
        """
        from sklearn.preprocessing import StandardScaler

        self.features, self.multi_label, self.device = features, multi_label, torch.device(device)
        self.blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
        self.count, self.num_classes = len(rows), targets.shape[1]
        counts = sum(targets[block].sum(axis=0, dtype=np.int64) for block in self.blocks)
        self.certain = np.flatnonzero(counts == self.count) if multi_label else np.zeros(0, np.int64)
        self.classes = np.flatnonzero((counts > 0) & ~(multi_label & (counts == self.count)))
        self.shares: Array = counts[self.classes] / self.count
        self._targets = targets
        scaler = StandardScaler()
        for block in self.blocks:
            scaler.partial_fit(np.asarray(features[block], np.float32))
        self.mean, self.scale = (torch.from_numpy(of.astype(np.float32)) for of in (scaler.mean_, scaler.scale_))
        on_cpu = self.device.type == "cpu"
        self._spread: Callable[..., Any] = spread if on_cpu else map
        self._block = self._read if on_cpu else cache(self._read)

    def covariance(self) -> Array:
        """Return the (D, D) covariance of the features, which are standardised."""
        (total,) = self._summed(lambda x, _: (x.T @ x,))
        return total.cpu().numpy() / self.count

    def loss(self, weights: Tensor, biases: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss of all samples, and its gradients.

        Args:
            weights: (D, P) float32, of the `classes`.
            biases: (P,) float32.
        """

        def of_block(x: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            logits = torch.addmm(biases, x, weights)
            if self.multi_label:
                loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").double().sum()
                errors = logits.sigmoid_().sub_(targets)
            else:
                errors = F.log_softmax(logits, dim=1)
                loss = -errors.gather(1, targets[:, None]).double().sum()
                errors.exp_()[torch.arange(len(x), device=x.device), targets] -= 1
            return loss, x.T @ errors, errors.sum(dim=0)

        loss, *gradients = self._summed(of_block)
        return float(loss) / self.count, gradients[0] / self.count, gradients[1] / self.count

    def _summed(self, of_block: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """Return the sums of a function's results over the blocks, in float64 and in the blocks' order."""
        total: list[Tensor] = []
        for begin in range(0, len(self.blocks), BLOCKS_AT_ONCE):
            numbers = range(len(self.blocks))[begin : begin + BLOCKS_AT_ONCE]
            for parts in self._spread(lambda number: of_block(*self._block(number)), numbers):
                total = total or [torch.zeros_like(part, dtype=torch.float64) for part in parts]
                for sum_, part in zip(total, parts, strict=True):
                    sum_ += part
        return total

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the features (b, D), standardised, and the targets: (b, P) of 0 and 1, or numbers (b,) below P."""
        rows = self.blocks[number]
        targets = self._targets[rows][:, self.classes]
        targets = targets.astype(np.float32) if self.multi_label else targets.argmax(axis=1)
        x = _standardised(self.features[rows], self.mean, self.scale)
        return x.to(self.device), torch.from_numpy(targets).to(self.device)


class Fit(NamedTuple):
    """A regression: standardise, multiply, add, and take the softmax or sigmoid."""

    samples: Samples
    strength: float  # C
    weights: Tensor  # (D, P) float32
    biases: Tensor  # (P,)
    converged: bool

    def scores(self, features: Array, rows: Array | None = None) -> Array:
        """Return the probabilities (m, C) float64 of all rows or of these; 0 for a class without a sample to fit on."""
        samples = self.samples
        rows = np.arange(len(features)) if rows is None else rows
        scores = np.zeros((len(rows), samples.num_classes))
        scores[:, samples.certain] = 1
        for begin in range(0, len(rows), BLOCK):
            x = _standardised(features[rows[begin : begin + BLOCK]], samples.mean, samples.scale).to(samples.device)
            logits = torch.addmm(self.biases, x, self.weights).double()
            likely = logits.sigmoid() if samples.multi_label else logits.softmax(dim=1)
            scores[begin : begin + BLOCK, samples.classes] = likely.cpu().numpy()
        return scores


def fit_path(samples: Samples, strengths: Sequence[float], *, start: Fit | None = None) -> Iterator[Fit]:
    """Yield the regression of each strength C; the first begins at `start`, or at 0, and others at the one before.

    Args:
        samples: The samples.
        strengths: Values of C, scikit-learn's: the smaller, the stronger the penalty.
        start: A fit on other samples with the same features and classes.
    """
    spectrum, axes = np.linalg.eigh(samples.covariance())
    spectrum = spectrum.clip(0)
    turn = torch.from_numpy(axes.astype(np.float32)).to(samples.device)
    spreads = np.maximum(samples.shares * (1 - samples.shares), 1 / samples.count**2)
    width, classes = len(spectrum), len(samples.classes)
    turned, biases = np.zeros((width, classes)), np.zeros(classes)  # weights along the axes
    if start is not None:
        _, mine, before = np.intersect1d(samples.classes, start.samples.classes, return_indices=True)
        turned[:, mine] = (turn.T @ start.weights).cpu().numpy()[:, before]
        biases[mine] = start.biases.cpu().numpy()[before]
    for strength in strengths:
        penalty = 1 / (strength * samples.count)
        units = np.concatenate([1 / np.sqrt(spectrum[:, None] * spreads + penalty), 1 / np.sqrt(spreads)[None]])
        at = np.concatenate([turned, biases[None]]) / units
        at, converged = _descend(samples, turn, units, penalty, at)
        turned, biases = np.split(at * units, [width])
        biases = biases[0]
        weights = turn @ torch.from_numpy(turned.astype(np.float32)).to(samples.device)
        yield Fit(samples, strength, weights, torch.from_numpy(biases.astype(np.float32)).to(samples.device), converged)


def _descend(samples: Samples, turn: Tensor, units: Array, penalty: float, at: Array) -> tuple[Array, bool]:
    """Return the optimum (D + 1, P), the last row the biases', in the given units, and whether it was reached."""
    from scipy.optimize import minimize

    if not at.size:
        return at, True

    def objective(flat: Array) -> tuple[float, Array]:
        point = flat.reshape(at.shape) * units
        on_device = torch.from_numpy(point.astype(np.float32)).to(samples.device)
        loss, of_weights, of_biases = samples.loss(turn @ on_device[:-1], on_device[-1])
        slope = np.concatenate([(turn.T @ of_weights.float()).cpu().numpy(), of_biases.cpu().numpy()[None]])
        slope[:-1] += penalty * point[:-1]
        return loss + penalty / 2 * float((point[:-1] ** 2).sum()), (slope * units).ravel()

    limits = {"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE, "gtol": 0.0}
    result = minimize(objective, at.ravel(), jac=True, method="L-BFGS-B", options=limits)
    return result.x.reshape(at.shape), result.nit < MAX_ITERATIONS


def _standardised(features: Array, mean: Tensor, scale: Tensor) -> Tensor:
    return (torch.from_numpy(np.asarray(features, np.float32, order="C")) - mean) / scale
