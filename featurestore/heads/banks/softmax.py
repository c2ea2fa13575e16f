"""Minimizing the penalized logistic losses of many heads at once, by one batched L-BFGS.

All heads share rows and labels and differ in ``C``. Each minimizes ``C · Σ weight · loss +
½‖coefficients‖²``; the intercept is free. The loss is the softmax cross-entropy, or for two classes
the logistic loss of one column.

Rows are centred and rotated once into the eigenbasis of their covariance. There the Hessian of a
head is close to a Kronecker product, the curvature of its classes by the spread of the coordinates
(K-FAC, Martens and Grosse 2015). Its inverse starts the L-BFGS of that head (Nocedal and Wright
2006, algorithm 7.4), so that all heads are well conditioned, whatever their ``C``. An evaluation
takes two matrix products for all heads together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

HISTORY = 10
# Numbers in the logits of a chunk of rows, and in what L-BFGS keeps of a batch of heads.
CHUNK_SIZE, BATCH_SIZE = 1 << 20, 1 << 27
# Relative rounding error of an objective whose products are float32.
NOISE = 1e-6
BACKTRACKS = 12


@dataclass(frozen=True)
class Coordinates:
    """Rows in an orthonormal basis in which their covariance is diagonal.

    Attributes
    ----------
    rows : float32 array, (row, coordinate)
        The last coordinate is 1 if there is an intercept.
    weights : float64 array, (row,)
    intercept : bool
    """

    rows: np.ndarray
    weights: np.ndarray
    intercept: bool
    mean: np.ndarray
    basis: np.ndarray
    source: np.ndarray | None

    @classmethod
    def of(cls, X: np.ndarray, weights: np.ndarray, intercept: bool) -> Coordinates:
        """Rotate rows, (row, feature). With fewer rows than features, there is one for each row."""
        X = np.asarray(X, np.float32)
        mean = np.zeros(X.shape[1])
        if intercept:
            for part in _slices(*X.shape):
                mean += (weights[part] / weights.sum()) @ X[part]
        mean = mean.astype(np.float32)
        wide = len(X) < X.shape[1]
        rows, basis = _by_rows(X, mean) if wide else _by_features(X, mean, weights)
        if intercept:
            rows = np.hstack([rows, np.ones((len(X), 1), np.float32)])
        return cls(rows, weights, intercept, mean, basis, X if wide else None)

    def spread(self) -> np.ndarray:
        """Return the weighted sum of squares of each coordinate."""
        total = np.zeros(self.rows.shape[1])
        for part in _slices(*self.rows.shape):
            total += self.weights[part] @ np.square(self.rows[part])
        return total

    def penalty(self) -> np.ndarray:
        """Return 0 for the intercept, 1 for every other coordinate."""
        penalty = np.ones(self.rows.shape[1])
        if self.intercept:
            penalty[-1] = 0
        return penalty

    def to_features(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn coefficients (head, class, coordinate) into those of features, and intercepts."""
        intercept = np.zeros(found.shape[:2])
        if self.intercept:
            intercept, found = found[..., -1], found[..., :-1]
        coefficients = found @ self.basis.T
        if self.source is not None:
            by_row = coefficients.reshape(-1, len(self.source))
            coefficients = np.empty((len(by_row), len(self.mean)))
            for part in _slices(len(self.mean), len(self.source)):
                coefficients[:, part] = by_row @ (self.source[:, part] - self.mean[part])
            coefficients = coefficients.reshape(*found.shape[:2], -1)
        return coefficients, intercept - coefficients @ self.mean


def _slices(count: int, size: int) -> Iterator[slice]:
    """Cut ``count`` rows of ``size`` numbers each into chunks of bounded size."""
    step = max(1, 8 * CHUNK_SIZE // size)
    return (slice(start, start + step) for start in range(0, count, step))


def _by_features(
    X: np.ndarray, mean: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rotated rows, (row, coordinate), and the basis, (feature, coordinate)."""
    covariance = np.zeros((X.shape[1], X.shape[1]))
    for part in _slices(*X.shape):
        centred = np.sqrt(weights[part])[:, None] * (X[part] - mean)
        covariance += centred.T @ centred
    basis = eigh(covariance, overwrite_a=True, check_finite=False)[1]
    rows, single = np.empty(X.shape, np.float32), basis.astype(np.float32)
    for part in _slices(*X.shape):
        np.matmul(X[part] - mean, single, out=rows[part])
    return rows, basis


def _by_rows(X: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rotated rows, (row, coordinate), and what makes coordinates of rows, the same."""
    products = np.zeros((len(X), len(X)))
    for part in _slices(X.shape[1], len(X)):
        centred = (X[:, part] - mean[part]).astype(np.float64)
        products += centred @ centred.T
    values, vectors = eigh(products, overwrite_a=True, check_finite=False)
    # Products of doubles have no more digits.
    kept = values > values[-1] * 1e-12
    length = np.sqrt(values[kept])
    return (vectors[:, kept] * length).astype(np.float32), vectors[:, kept] / length


class Losses:
    """The losses of all heads on the same rows.

    Parameters
    ----------
    coordinates : Coordinates
    codes : int array, (row,)
        Class of each row.
    classes : int
    """

    def __init__(self, coordinates: Coordinates, codes: np.ndarray, classes: int) -> None:
        self.coordinates = coordinates
        self.codes = codes
        self.columns = 1 if classes == 2 else classes
        self.weights = coordinates.weights.astype(np.float32)

    def start(self) -> np.ndarray:
        """Return coefficients, (class, coordinate), that give each row the share of its class."""
        found = np.zeros((self.columns, self.coordinates.rows.shape[1]))
        if self.coordinates.intercept:
            weights = self.coordinates.weights
            share = np.log(np.bincount(self.codes, weights) + 1e-3 * weights.mean())
            found[:, -1] = share[1] - share[0] if self.columns == 1 else share - share.mean()
        return found

    def __call__(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluate coefficients (head, class, coordinate).

        Returns
        -------
        loss : array, (head,)
            Weighted sum over the rows.
        gradient : array, (head, class, coordinate)
        curvature : array, (head, class, class)
            Weighted mean over the rows of the second derivatives by the logits.
        """
        heads, columns, size = found.shape
        rows, codes = self.coordinates.rows, self.codes
        single = found.reshape(-1, size).astype(np.float32)
        loss, gradient = np.zeros(heads), np.zeros((heads * columns, size))
        curvature = np.zeros((heads, columns, columns))
        step = max(64, CHUNK_SIZE // (heads * columns))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            logits = (single @ rows[part].T).reshape(heads, columns, -1)
            function = _binary if columns == 1 else _multinomial
            losses, residuals, curved = function(logits, codes[part], self.weights[part])
            loss += losses
            curvature += curved
            gradient += residuals.reshape(heads * columns, -1) @ rows[part]
        total = self.coordinates.weights.sum()
        return loss, gradient.reshape(found.shape), curvature / total


def _multinomial(
    logits: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return losses, residuals and curvature of logits, (head, class, row), which this overwrites.

    The loss is log1p of the odds against the true class, so that small losses keep their digits.
    """
    row = np.arange(len(codes))
    logits -= logits.max(axis=1, keepdims=True)
    true = logits[:, codes, row]
    share = np.exp(logits, out=logits)
    own = share[:, codes, row]
    share[:, codes, row] = 0
    others = share.sum(axis=1)
    losses = np.log1p(others + (own - 1)) - true
    total = others + own
    share /= total[:, None]
    share[:, codes, row] = own / total
    weighted = share * weights
    curvature = -(weighted @ share.transpose(0, 2, 1)).astype(np.float64)
    diagonal = np.arange(share.shape[1])
    curvature[:, diagonal, diagonal] += weighted.sum(axis=2)
    weighted[:, codes, row] = -weights * others / total
    return losses @ weights.astype(np.float64), weighted, curvature


def _binary(
    logits: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do the same for the logit of the second class, (head, 1, row)."""
    sign = np.where(codes == 1, np.float32(-1), np.float32(1))
    against = logits * sign
    small = np.exp(-np.abs(against))
    losses = np.maximum(against, 0) + np.log1p(small)
    wrong = np.where(against > 0, 1, small) / (1 + small)
    curvature = (wrong * (1 - wrong)) @ weights.astype(np.float64)
    return losses[:, 0] @ weights.astype(np.float64), wrong * (sign * weights), curvature[..., None]


@dataclass
class _State:
    """Where each head stands; the first axis of every array is the head."""

    head: np.ndarray
    c: np.ndarray
    found: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray
    direction: np.ndarray
    slope: np.ndarray
    step: np.ndarray
    failed: np.ndarray
    count: np.ndarray

    def keep(self, heads: np.ndarray) -> None:
        """Drop the other heads."""
        for name, value in vars(self).items():
            setattr(self, name, value[heads])


def minimize(
    losses: Losses, c: np.ndarray, tolerance: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimize the objective of each head.

    Parameters
    ----------
    losses : Losses
    c : array, (head,)
    tolerance : float
        A head has converged when another step promises to lower its objective by less than this
        share of it.
    max_iter : int

    Returns
    -------
    found : array, (head, class, coordinate)
    iterations : int array, (head,)
    converged : bool array, (head,)
    """
    start = losses.start()
    batch = max(1, BATCH_SIZE // (2 * (HISTORY + 4) * start.size))
    parts = [c[begin : begin + batch] for begin in range(0, len(c), batch)]
    done = [_minimize(losses, part, start, tolerance, max_iter) for part in parts]
    found, iterations, converged = (np.concatenate(each) for each in zip(*done, strict=True))
    return found, iterations, converged


def _minimize(
    losses: Losses, c: np.ndarray, start: np.ndarray, tolerance: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimize the objectives of a batch of heads that fits in memory."""
    spread, penalty = losses.coordinates.spread(), losses.coordinates.penalty()

    def objective(found: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        loss, gradient, curvature = losses(found)
        shrunk = found * penalty
        value = c * loss + _dot(shrunk, shrunk) / 2
        return value, c[:, None, None] * gradient + shrunk, curvature

    def precondition(gradient: np.ndarray, at: _State) -> np.ndarray:
        curved, classes = np.linalg.eigh(at.curvature)
        curved = np.maximum(curved, 1e-8 * curved[:, -1:] + 1e-30)
        scale = (at.c[:, None] * curved)[..., None] * spread + penalty
        return classes @ ((classes.transpose(0, 2, 1) @ gradient) / scale)

    heads = len(c)
    found = np.repeat(start[None], heads, axis=0)
    value, gradient, curvature = objective(found, c)
    at = _State(
        head=np.arange(heads),
        c=c,
        found=found,
        value=value,
        gradient=gradient,
        curvature=curvature,
        direction=found,
        slope=value,
        step=np.ones(heads),
        failed=np.zeros(heads, int),
        count=np.zeros(heads, int),
    )
    at.direction = -precondition(gradient, at)
    at.slope = _dot(at.direction, gradient)
    result, iterations, converged = (
        np.empty_like(found),
        np.zeros(heads, int),
        np.zeros(heads, bool),
    )
    history: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque(maxlen=HISTORY)
    while True:
        near = -at.slope / 2 <= tolerance * at.value
        stuck = at.failed > BACKTRACKS
        over = near | stuck | (at.count >= max_iter)
        if over.any():
            # Rounding hides what else is to gain.
            near |= stuck & (-at.slope / 2 <= 100 * NOISE * at.value)
            result[at.head[over]] = at.found[over]
            iterations[at.head[over]], converged[at.head[over]] = at.count[over], near[over]
            if over.all():
                return result, iterations, converged
            at.keep(~over)
            for _ in range(len(history)):
                moved, changed, weight = history.popleft()
                history.append((moved[~over], changed[~over], weight[~over]))
        trial = at.found + at.step[:, None, None] * at.direction
        value, gradient, curvature = objective(trial, at.c)
        slope = _dot(gradient, at.direction)
        taken = value <= at.value + 1e-4 * at.step * at.slope
        taken |= (value <= at.value * (1 + NOISE)) & (np.abs(slope) <= -0.9 * at.slope)
        moved, changed = trial - at.found, gradient - at.gradient
        turned = _dot(moved, changed)
        weight = np.where(taken & (turned > 0), 1 / np.where(turned > 0, turned, 1), 0)
        history.append((moved, changed, weight))
        at.failed = np.where(taken, 0, at.failed + 1)
        at.count += taken
        # Between both slopes there is a zero.
        shorter = at.slope / np.where(slope > 0, at.slope - slope, at.slope)
        at.step = np.where(taken, 1, at.step * np.clip(shorter, 0.1, 0.5))
        at.value = np.where(taken, value, at.value)
        for name, new in (("found", trial), ("gradient", gradient), ("curvature", curvature)):
            getattr(at, name)[taken] = new[taken]
        # A head whose step failed keeps its direction; halfway to giving up, it begins again.
        again = at.failed == BACKTRACKS // 2
        for _, _, weight in history:
            weight[again] = 0
        at.step[again] = 1
        at.direction[taken | again] = _two_loops(at, history, precondition)[taken | again]
        at.slope = _dot(at.direction, at.gradient)


def _two_loops(
    at: _State,
    history: deque[tuple[np.ndarray, np.ndarray, np.ndarray]],
    precondition: Callable[[np.ndarray, _State], np.ndarray],
) -> np.ndarray:
    """Return the direction of each head; pairs of weight 0 do not count."""
    left = at.gradient.copy()
    shares = []
    for moved, changed, weight in reversed(history):
        share = weight * _dot(moved, left)
        left -= share[:, None, None] * changed
        shares.append(share)
    left = precondition(left, at)
    for (moved, changed, weight), share in zip(history, reversed(shares), strict=True):
        left += (share - weight * _dot(changed, left))[:, None, None] * moved
    return -left


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scalar product of each head's arrays, (head, class, coordinate)."""
    return np.einsum("hij,hij->h", a, b)
