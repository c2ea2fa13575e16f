"""Minimizing the penalized logistic losses of many heads at once, by one batched L-BFGS.

All heads share rows and labels and differ in ``C``. Each minimizes ``C · Σ weight · loss +
½‖coefficients‖²``; the intercept is free. The loss is the softmax cross-entropy, or for two classes
the logistic loss of one column.

Rows are centred and rotated once into the eigenbasis of their covariance. There the Hessian of a
head is close to a Kronecker product, the curvature of its classes by the spread of the coordinates
(K-FAC, Martens and Grosse 2015). Where it is not, the block of each class in the coordinates of
largest spread comes from a sample of rows, and serves heads of similar ``C`` too. The inverse
starts the L-BFGS of that head (Nocedal and Wright 2006, algorithm 7.4), so that all heads are well
conditioned, whatever their ``C``. An evaluation takes two matrix products for all heads together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from featurestore.heads.banks.losses import SAMPLE, Losses

HISTORY = 10
# Numbers that L-BFGS keeps of a batch of heads, or that blocks of Hessians hold.
BATCH_SIZE = 1 << 27
# Relative rounding error of an objective whose products are float32.
NOISE = 1e-6
# Evaluations in a row that gain nothing.
PATIENCE = 8
# Distance in log C of heads that are solved one after the other.
SPACING = 0.8
# The blocks of a head serve another up to this ratio of their C, and of their curvatures.
REACH = 10.0


@dataclass
class _State:
    """Where each head stands; the first axis of every array is the head."""

    head: np.ndarray
    c: np.ndarray
    found: np.ndarray
    value: np.ndarray
    best: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray
    direction: np.ndarray
    slope: np.ndarray
    step: np.ndarray
    idle: np.ndarray
    count: np.ndarray
    inverted: np.ndarray

    @classmethod
    def begin(
        cls,
        cold: np.ndarray,
        c: np.ndarray,
        loss: np.ndarray,
        gradient: np.ndarray,
        curvature: np.ndarray,
    ) -> _State:
        """Start all heads with only a nonzero intercept, which is not penalized."""
        heads = len(c)
        return cls(
            head=np.arange(heads),
            c=c,
            found=np.repeat(cold[None], heads, axis=0),
            value=c * loss,
            best=np.full(heads, np.inf),
            gradient=c[:, None, None] * gradient,
            curvature=c[:, None, None] * curvature,
            direction=np.zeros((heads, *cold.shape)),
            slope=np.zeros(heads),
            step=np.ones(heads),
            idle=np.zeros(heads, int),
            count=np.zeros(heads, int),
            inverted=np.full(heads, None),
        )

    def move(
        self,
        objective: tuple[np.ndarray, ...],
        found: np.ndarray,
        heads: np.ndarray | None = None,
    ) -> None:
        """Replace the coefficients of heads, by default where that lowers the objective."""
        heads = objective[0] < self.value if heads is None else heads
        self.found[heads] = found[heads]
        self.value[heads], self.gradient[heads], self.curvature[heads] = (
            each[heads] for each in objective
        )

    def keep(self, heads: np.ndarray) -> None:
        """Drop the other heads."""
        for name, value in vars(self).items():
            setattr(self, name, value[heads])


def minimize(
    losses: Losses, c: np.ndarray, tolerance: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimize the objective of each head.

    Coefficients are smooth in log ``C``: some heads are solved one after the other, each from where
    the path of those before it leads. All others, between them, then have hardly anything to gain.

    Parameters
    ----------
    losses : Losses
    c : array, (head,)
    tolerance : float
        A head has converged when its next step promises to gain at most a hundredth of this share
        of its objective, by the quadratic model of that step (Boyd and Vandenberghe 2004, 9.5.1).
    max_iter : int

    Returns
    -------
    found : array, (head, class, coordinate)
    iterations : int array, (head,)
    converged : bool array, (head,)
    """
    distinct, copies = np.unique(c, return_inverse=True)
    solver = _Solver(losses, tolerance, max_iter)
    found = np.empty((len(distinct), *solver.cold.shape))
    iterations, converged = np.zeros(len(distinct), int), np.zeros(len(distinct), bool)
    kept = 2 * (HISTORY + 4) * solver.cold.size + solver.leading**2 * len(solver.cold)
    batch = max(1, BATCH_SIZE // kept)
    logs, solved = np.log(distinct), np.zeros(0, int)
    for level in _levels(logs):
        for begin in range(0, len(level), batch):
            part = level[begin : begin + batch]
            starts = _predicted(logs, found, solved, part)
            found[part], iterations[part], converged[part] = solver.run(distinct[part], starts)
        solved = np.sort([*solved, *level])
    return found[copies], iterations[copies], converged[copies]


def _levels(logs: np.ndarray) -> list[list[int]]:
    """Return heads to solve one after the other, then all those between them, to solve at once.

    Parameters
    ----------
    logs : array, (head,)
        Sorted log ``C``.

    Examples
    --------
    >>> _levels(np.arange(7) * SPACING / 3)
    [[0], [3], [6], [1, 2, 4, 5]]
    """
    levels = [[0]]
    for head in range(1, len(logs)):
        last = head == len(logs) - 1
        if last or logs[head] - logs[levels[-1][0]] > SPACING * 0.999:
            levels.append([head])
    between = sorted({*range(len(logs))} - {head for (head,) in levels})
    return [*levels, between] if between else levels


def _predicted(
    logs: np.ndarray, found: np.ndarray, solved: np.ndarray, wanted: list[int]
) -> np.ndarray | None:
    """Return Lagrange's polynomial through solved heads: six around a head, or the last three."""
    if not len(solved):
        return None
    starts = np.zeros((len(wanted), *found.shape[1:]))
    for row, head in enumerate(wanted):
        nodes = min(6 if head < solved[-1] else 3, len(solved))
        first = np.clip(np.searchsorted(solved, head) - nodes // 2, 0, len(solved) - nodes)
        near = solved[first : first + nodes]
        for node in near:
            others = near[near != node]
            share = np.prod((logs[head] - logs[others]) / (logs[node] - logs[others]))
            starts[row] += share * found[node]
    return starts


class _Solver:
    """L-BFGS of batches of heads that fit in memory.

    Parameters
    ----------
    losses : Losses
    tolerance : float
    max_iter : int
        As `minimize` takes them.
    """

    def __init__(self, losses: Losses, tolerance: float, max_iter: int) -> None:
        self.losses, self.tolerance, self.max_iter = losses, tolerance, max_iter
        self.spread, self.penalty = losses.coordinates.spread(), losses.coordinates.penalty()
        self.cold = losses.start()
        self.from_cold = losses(self.cold[None])
        self.leading = _leading(losses.coordinates.rows, losses.columns)
        self.known: dict[float, Any] = {}

    def run(self, c: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Minimize from given coefficients or, where these are worse, from `Losses.start`.

        Returns what `minimize` does.
        """
        at = _State.begin(self.cold, c, *(each[0] for each in self.from_cold))
        if starts is not None:
            at.move(self._objective(starts, c), starts)
            at.inverted = np.fromiter((self._nearest(each) for each in c), object, len(c))
        result, iterations = np.empty_like(at.found), np.zeros(len(c), int)
        converged = np.zeros(len(c), bool)
        history: History = deque(maxlen=HISTORY)
        taken = np.ones(len(c), bool)
        while True:
            near = self._aim(at, history, taken)
            over = near | (at.idle > PATIENCE) | (at.count >= self.max_iter)
            # The last step is known; what it promises is too little to be measured.
            last = (near & (at.idle <= PATIENCE))[:, None, None] * at.direction
            result[at.head[over]] = (at.found + last)[over]
            iterations[at.head[over]], converged[at.head[over]] = at.count[over], near[over]
            if over.all():
                return result, iterations, converged
            if over.any():
                at.keep(~over)
                for _ in range(len(history)):
                    moved, changed, weight = history.popleft()
                    history.append((moved[~over], changed[~over], weight[~over]))
            taken = self._step(at, history)

    def _objective(self, found: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return objectives (head,), gradients and curvatures, (head, class, …)."""
        loss, gradient, curvature = self.losses(found)
        c, shrunk = c[:, None, None], found * self.penalty
        return c[:, 0, 0] * loss + _dot(shrunk, shrunk) / 2, c * gradient + shrunk, c * curvature

    def _aim(self, at: _State, history: History, taken: np.ndarray) -> np.ndarray:
        """Set directions of heads whose last step was taken; return which heads have converged."""
        inverse = self._inverse(at, taken)
        # A head whose step failed keeps its direction; halfway to giving up, it begins again.
        again = at.idle == PATIENCE // 2
        for _, _, weight in history:
            weight[again] = 0
        at.step[again] = 1
        newton = _two_loops(at.gradient, history, inverse)
        promised = _dot(newton, at.gradient) / 2
        # A hundredth of the tolerance: the promise is rough, and predictions are to agree too.
        near = np.abs(promised) <= self.tolerance * at.value / 100
        # Where nothing is gained any more, rounding hides what is left.
        near |= (at.idle > PATIENCE) & (promised <= 100 * NOISE * at.value)
        turn = taken | again
        at.direction[turn] = -newton[turn]
        at.slope = _dot(at.direction, at.gradient)
        return near

    def _inverse(self, at: _State, taken: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what multiplies gradients by the inverse of the approximate Hessian."""
        curved, classes = np.linalg.eigh(at.curvature)
        curved = np.maximum(curved, 1e-8 * curved[:, -1:] + 1e-30)
        scale = curved[..., None] * self.spread + self.penalty
        # After 8, 16, … steps, or 4 without the blocks of another head: good starts end before.
        first = np.array([4 if factors is None else 8 for factors in at.inverted])
        due = taken & (at.count >= first) & (at.count & (at.count - 1) == 0)
        for head in np.flatnonzero(due & (self.leading > 1)):
            at.inverted[head] = self._factors(at.found[head], at.c[head], at.curvature[head])

        def inverse(gradient: np.ndarray) -> np.ndarray:
            found = classes @ ((classes.transpose(0, 2, 1) @ gradient) / scale)
            for head, factors in enumerate(at.inverted):
                if factors is not None:
                    curvature = np.maximum(np.diag(at.curvature[head]), 1e-30)
                    for one, (factor, known) in enumerate(factors):
                        part = gradient[head, one, -self.leading :].astype(np.float32)
                        part = cho_solve((factor, True), part, check_finite=False)
                        ratio = np.clip(known / curvature[one], 1 / REACH, REACH)
                        found[head, one, -self.leading :] = ratio * part
            # To shift all classes alike changes nothing.
            return found - found.mean(axis=1, keepdims=True) if found.shape[1] > 1 else found

        return inverse

    def _factors(self, found: np.ndarray, c: float, curvature: np.ndarray) -> Any:
        """Factorize the blocks of a head's Hessian; None if that fails.

        Returns
        -------
        list of tuple
            For each class, the factor and the curvature that it is for.
        """
        blocks = np.float32(c) * self.losses.blocks(found, self.leading)
        diagonal = np.einsum("kii->ki", blocks)
        diagonal += 1e-6 * diagonal + self.penalty[-self.leading :].astype(np.float32)
        try:
            factors = [cho_factor(each, lower=True, check_finite=False)[0] for each in blocks]
        except np.linalg.LinAlgError:
            return None
        known = list(zip(factors, np.diag(curvature).copy(), strict=True))
        self.known[c] = known
        while len(self.known) > max(1, BATCH_SIZE // blocks.size):
            del self.known[next(iter(self.known))]
        return known

    def _nearest(self, c: float) -> Any:
        """Return the blocks of the head of the nearest C, unless that is far."""
        near = min(self.known, key=lambda known: abs(np.log(known / c)), default=None)
        return None if near is None or max(near / c, c / near) > REACH else self.known[near]

    def _step(self, at: _State, history: History) -> np.ndarray:
        """Try a step of each head, and return which heads take it."""
        trial = at.found + at.step[:, None, None] * at.direction
        value, gradient, curvature = self._objective(trial, at.c)
        slope = _dot(gradient, at.direction)
        taken = value <= at.value + 1e-4 * at.step * at.slope
        taken |= (value <= at.value * (1 + NOISE)) & (np.abs(slope) <= -0.9 * at.slope)
        moved, changed = trial - at.found, gradient - at.gradient
        turned = _dot(moved, changed)
        history.append((moved, changed, np.where(taken & (turned > 0), 1 / turned, 0)))
        at.count += taken
        # Rounding moves values up and down; only a new low is a gain.
        at.idle = np.where(value < at.best * (1 - NOISE / 10), 0, at.idle + 1)
        at.best = np.minimum(at.best, value)
        # The slope is zero between a step too long and none.
        shorter = at.slope / np.where(slope > 0, at.slope - slope, at.slope)
        at.step = np.where(taken, 1, at.step * np.clip(shorter, 0.1, 0.5))
        at.move((value, gradient, curvature), trial, taken)
        return taken


History = deque[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Steps, changes of the gradient, and 1 / their product, 0 where a step does not count."""


def _leading(rows: np.ndarray, columns: int) -> int:
    """Return how many coordinates the blocks have: these take the time of some evaluations."""
    evaluations = (100 * rows.size * columns + 2e8) / columns
    leading = min(rows.shape[1], int((BATCH_SIZE / columns) ** 0.5))
    while leading > 1 and min(len(rows), SAMPLE * leading) * leading**2 > evaluations:
        leading = leading * 9 // 10
    return leading


def _two_loops(
    gradient: np.ndarray, history: History, inverse: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the inverse of the Hessian that the history tells, times the gradient."""
    left, shares = gradient.copy(), []
    for moved, changed, weight in reversed(history):
        share = weight * _dot(moved, left)
        left -= share[:, None, None] * changed
        shares.append(share)
    left = inverse(left)
    if history:
        _, changed, weight = history[-1]
        bent = weight * _dot(changed, inverse(changed))
        left /= np.where(bent > 0, bent, 1)[:, None, None]
    for (moved, changed, weight), share in zip(history, reversed(shares), strict=True):
        left += (share - weight * _dot(changed, left))[:, None, None] * moved
    return left


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scalar product of each head's arrays, (head, class, coordinate)."""
    return np.einsum("hij,hij->h", a, b)
