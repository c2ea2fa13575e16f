"""Minimizing the penalized logistic losses of many heads at once, by one batched L-BFGS.

All heads share rows and labels and differ in ``C``. Each minimizes ``C · Σ weight · loss +
½‖coefficients‖²``; the intercept is free. The loss is the softmax cross-entropy, or for two classes
the logistic loss of one column.

Rows are centred and rotated once into the eigenbasis of their covariance. There the Hessian of a
head is close to a Kronecker product, the curvature of its classes by the spread of the coordinates
(K-FAC, Martens and Grosse 2015); in the few coordinates of largest spread, where it is not, a
sample of rows gives it. The inverse of both starts the L-BFGS of that head (Nocedal and Wright
2006, algorithm 7.4), so that all heads are well conditioned, whatever their ``C``. An evaluation
takes two matrix products for all heads together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from featurestore.heads.banks.losses import SAMPLE, Losses

HISTORY = 10
# Numbers that L-BFGS keeps of a batch of heads.
BATCH_SIZE = 1 << 27
# Relative rounding error of an objective whose products are float32.
NOISE = 1e-6
# Evaluations in a row that gain nothing.
PATIENCE = 8


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
        """Put all heads where only the intercept is not zero, so that nothing is penalized."""
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
        """Move heads to other coefficients, by default those that are better off there."""
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

    Coefficients are smooth in log ``C``: a few heads are solved first, and the others start from
    the cubic through their neighbours, with hardly anything left to gain.

    Parameters
    ----------
    losses : Losses
    c : array, (head,)
    tolerance : float
        A head has converged when its objective is at most this share above the lowest one, as a
        bound by the gradient shows (Boyd and Vandenberghe 2004, 9.1.2), or where the approximate
        Hessian promises a hundredth of it, with a factor of ten to spare.
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
    kept = 2 * (HISTORY + 4) * solver.cold.size + (solver.leading * len(solver.cold)) ** 2
    batch = max(1, BATCH_SIZE // kept)
    solved: list[int] = []
    for level in _levels(len(distinct)):
        for begin in range(0, len(level), batch):
            part = level[begin : begin + batch]
            starts = _interpolated(np.log(distinct), found, solved, part)
            found[part], iterations[part], converged[part] = solver.run(distinct[part], starts)
        solved += level
    return found[copies], iterations[copies], converged[copies]


def _levels(heads: int) -> list[list[int]]:
    """Return the heads to solve first, both ends among them, then those halfway between, and so on.

    >>> _levels(9)
    [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    """
    known = sorted({round(each) for each in np.linspace(0, heads - 1, 5)})
    levels = [known]
    while len(known) < heads:
        levels.append([(one + two) // 2 for one, two in pairwise(known) if two - one > 1])
        known = sorted([*known, *levels[-1]])
    return levels


def _interpolated(
    logs: np.ndarray, found: np.ndarray, solved: list[int], wanted: list[int]
) -> np.ndarray | None:
    """Return Lagrange's cubic through the nearest solved heads, two on each side if there are."""
    if len(solved) < 4:
        return None
    starts = np.zeros((len(wanted), *found.shape[1:]))
    known = np.sort(solved)
    for row, head in enumerate(wanted):
        first = np.clip(np.searchsorted(known, head) - 2, 0, len(known) - 4)
        near = known[first : first + 4]
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

    def run(self, c: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Minimize from given coefficients or, where these are worse, from those of `start`.

        Returns what `minimize` does.
        """
        at = _State.begin(self.cold, c, *(each[0] for each in self.from_cold))
        if starts is not None:
            at.move(self._objective(starts, c), starts)
        result, iterations = np.empty_like(at.found), np.zeros(len(c), int)
        converged = np.zeros(len(c), bool)
        history: History = deque(maxlen=HISTORY)
        taken = np.ones(len(c), bool)
        while True:
            near = self._aim(at, history, taken)
            over = near | (at.idle > PATIENCE) | (at.count >= self.max_iter)
            result[at.head[over]] = at.found[over]
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
        newton = inverse(at.gradient)
        promised = _dot(newton, at.gradient) / 2
        # The objective is strongly convex in all coordinates but the intercept.
        bound = _dot(np.where(self.penalty, at.gradient, newton), at.gradient) / 2
        # A tenth of the tolerance: predictions are to agree too.
        near = np.minimum(bound, 100 * promised) <= self.tolerance * at.value / 10
        # Where nothing is gained any more, rounding hides what is left.
        near |= (at.idle > PATIENCE) & (promised <= 100 * NOISE * at.value)
        # A head whose step failed keeps its direction; halfway to giving up, it begins again.
        again = at.idle == PATIENCE // 2
        for _, _, weight in history:
            weight[again] = 0
        at.step[again] = 1
        turn = (taken | again) & ~near
        if turn.any():
            at.direction[turn] = -_two_loops(at.gradient, history, inverse)[turn]
        at.slope = _dot(at.direction, at.gradient)
        return near

    def _inverse(self, at: _State, taken: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what multiplies gradients by the inverse of the approximate Hessian."""
        curved, classes = np.linalg.eigh(at.curvature)
        curved = np.maximum(curved, 1e-8 * curved[:, -1:] + 1e-30)
        scale = curved[..., None] * self.spread + self.penalty
        # After 4, 8, 16, … steps: heads with a good start end before.
        due = taken & (at.count >= 4) & (at.count & (at.count - 1) == 0) & (self.leading > 1)
        if due.any():
            # These matrices are small. BLAS threads that wait for each other on them made heads 15
            # times slower where other programs use the processors.
            with threadpool_limits(1, "blas"):
                for head in np.flatnonzero(due):
                    at.inverted[head] = self._inverted(at.found[head], at.c[head])

        def inverse(gradient: np.ndarray) -> np.ndarray:
            found = classes @ ((classes.transpose(0, 2, 1) @ gradient) / scale)
            for head, inverted in enumerate(at.inverted):
                if inverted is not None:
                    part = gradient[head, :, -self.leading :]
                    found[head, :, -self.leading :] = (inverted @ part.ravel()).reshape(part.shape)
            return found

        return inverse

    def _inverted(self, found: np.ndarray, c: float) -> Any:
        """Invert a head's Hessian by its leading coordinates; None if it cannot be inverted."""
        hessian = c * self.losses.hessian(found, self.leading)
        hessian = hessian.reshape(len(found) * self.leading, -1)
        diagonal = np.einsum("ii->i", hessian)
        # A shift of all intercepts alike has no curvature.
        diagonal += 1e-6 * diagonal + np.tile(self.penalty[-self.leading :], len(found))
        try:
            factor = cho_factor(hessian, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        return cho_solve(factor, np.eye(len(hessian)), overwrite_b=True, check_finite=False)

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
    """Return how many coordinates have a Hessian of their own: it takes a few evaluations' time."""
    evaluation = 12 * rows.size * columns + 2e8
    leading = int((evaluation / (columns**2 * min(len(rows), SAMPLE))) ** 0.5)
    return min(leading, 1000 // columns, rows.shape[1])


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
