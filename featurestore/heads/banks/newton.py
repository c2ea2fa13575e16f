"""Minimizing the penalized logistic losses of many heads at once, by Newton's method.

All heads share rows and labels and differ in ``C``. Each minimizes ``C · Σ weight · loss +
½‖coefficients‖²``; the intercept is free. The loss is the softmax cross-entropy, or for two classes
the logistic loss of one column.

Each Newton step is solved by conjugate gradients with exact products of the Hessian (Nocedal and
Wright 2006, section 7.1), for all heads together: two matrix products. Rows are centred and rotated
into the eigenbasis of their covariance, where the Hessian is close to a Kronecker product, the
curvature of the classes by the spread of the coordinates (K-FAC, Martens and Grosse 2015). Its
inverse is the preconditioner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurestore.heads.banks.losses import Losses

# Numbers that a batch of heads holds at most.
BATCH_SIZE = 1 << 26
# Products of the Hessian for one step, and shorter steps, at most.
PRODUCTS, SHORTER = 200, 12
# A step is solved until the gradient that is left, and the last gain, are this part of the first.
ROUGH = 0.1
# Distance in log C of the heads that are solved first.
SPACING = 0.8


@dataclass
class _State:
    """Where each head stands; the first axis of every array is the head."""

    head: np.ndarray
    c: np.ndarray
    found: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray
    share: np.ndarray

    def keep(self, heads: np.ndarray) -> None:
        """Drop the other heads."""
        for name, value in vars(self).items():
            setattr(self, name, value[heads])

    def move(self, found: np.ndarray, objective: tuple[np.ndarray, ...], taken: np.ndarray) -> None:
        """Replace the coefficients of heads and what follows from them."""
        names = "found", "value", "gradient", "curvature", "share"
        for name, values in zip(names, (found, *objective), strict=True):
            getattr(self, name)[taken] = values[taken]


def minimize(
    losses: Losses, c: np.ndarray, tolerance: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimize the objective of each head.

    Coefficients are smooth in log ``C``: heads between others start where the path of these leads,
    and have hardly anything to gain. Where a head starts has no part in when it has converged.

    Parameters
    ----------
    losses : Losses
    c : array, (head,)
    tolerance : float
        A head has converged when half its Newton decrement squared, which estimates how far its
        objective is above the lowest, is at most this share of the objective (Boyd and Vandenberghe
        2004, section 9.5.1). One more step is taken then.
    max_iter : int

    Returns
    -------
    found : array, (head, class, coordinate)
    iterations : int array, (head,)
    converged : bool array, (head,)
    """
    distinct, copies = np.unique(c, return_inverse=True)
    cold, solver = losses.start(), _Solver(losses, tolerance, max_iter)
    found = np.empty((len(distinct), *cold.shape))
    iterations, converged = np.zeros(len(distinct), int), np.zeros(len(distinct), bool)
    batch = max(1, BATCH_SIZE // (10 * cold.size + 3 * len(cold) * len(losses.codes)))
    logs = np.log(distinct)
    first, between = _levels(logs)
    for level in (first, between):
        for begin in range(0, len(level), batch):
            part = level[begin : begin + batch]
            starts = _predicted(logs, found, first, part) if level is between else None
            found[part], iterations[part], converged[part] = solver.run(
                distinct[part], cold, starts
            )
    return found[copies], iterations[copies], converged[copies]


def _levels(logs: np.ndarray) -> list[np.ndarray]:
    """Return heads to solve first, which lie apart, and all those between them.

    Parameters
    ----------
    logs : array, (head,)
        Sorted log ``C``.

    Examples
    --------
    >>> _levels(np.arange(7) * SPACING / 3)
    [array([0, 3, 6]), array([1, 2, 4, 5])]
    """
    first = [0]
    for head in range(1, len(logs)):
        if head == len(logs) - 1 or logs[head] - logs[first[-1]] > SPACING * 0.999:
            first.append(head)
    return [np.array(first), np.setdiff1d(np.arange(len(logs)), first)]


def _predicted(
    logs: np.ndarray, found: np.ndarray, solved: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Return Lagrange's polynomial through six solved heads around each wanted one."""
    starts = np.zeros((len(wanted), *found.shape[1:]))
    for row, head in enumerate(wanted):
        nodes = min(6, len(solved))
        first = np.clip(np.searchsorted(solved, head) - nodes // 2, 0, len(solved) - nodes)
        near = solved[first : first + nodes]
        for node in near:
            others = near[near != node]
            share = np.prod((logs[head] - logs[others]) / (logs[node] - logs[others]))
            starts[row] += share * found[node]
    return starts


class _Solver:
    """Newton's method for batches of heads that fit in memory.

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
        self.rounding = np.finfo(losses.coordinates.rows.dtype).eps

    def run(
        self, c: np.ndarray, cold: np.ndarray, starts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minimize from given coefficients or, where these are worse, from ``cold`` ones.

        Returns what `minimize` does.
        """
        found = np.repeat(cold[None], len(c), axis=0)
        at = _State(np.arange(len(c)), c, found, *self._objective(found, c))
        if starts is not None:
            objective = self._objective(starts, c)
            at.move(starts, objective, objective[0] < at.value)
        result, iterations = np.empty_like(at.found), np.zeros(len(c), int)
        converged, stuck = np.zeros(len(c), bool), np.zeros(len(c), bool)
        for count in range(self.max_iter + 1):
            step, gain = self._newton(at)
            near = gain <= self.tolerance * at.value
            over = near | stuck | (count == self.max_iter)
            # The last step is not evaluated: it gains less than can be measured.
            result[at.head[over]] = (at.found - np.where(near[:, None, None], step, 0))[over]
            iterations[at.head[over]], converged[at.head[over]] = count, near[over]
            at.keep(~over)
            if over.all():
                break
            stuck = ~self._descend(at, step[~over], gain[~over])
        return result, iterations, converged

    def _objective(self, found: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return objectives (head,), gradients, curvatures and shares, (head, class, …)."""
        loss, gradient, curvature, share = self.losses(found)
        shrunk = found * self.penalty
        value = c * loss + _dot(shrunk, shrunk) / 2
        return value, c[:, None, None] * gradient + shrunk, curvature, share

    def _newton(self, at: _State) -> tuple[np.ndarray, np.ndarray]:
        """Return the Newton step of each head, to subtract, and what its model gains by it."""
        curved, classes = np.linalg.eigh(at.c[:, None, None] * at.curvature)
        curved = np.maximum(curved, 1e-8 * curved[:, -1:] + 1e-30)
        scale = curved[..., None] * self.spread + self.penalty

        def precondition(left: np.ndarray) -> np.ndarray:
            values = classes @ ((classes.transpose(0, 2, 1) @ left) / scale)
            # To shift all classes alike changes nothing.
            return values - values.mean(axis=1, keepdims=True) if values.shape[1] > 1 else values

        step, left, gain = np.zeros_like(at.gradient), at.gradient.copy(), np.zeros(len(at.c))
        direction = toward = precondition(left)
        size = start = _dot(left, toward)
        active = size > 0
        for _ in range(PRODUCTS):
            some = np.flatnonzero(active)
            if not len(some):
                break
            product = np.zeros_like(step)
            bent = self.losses.product(at.share, direction, some)
            product[some] = at.c[some, None, None] * bent + direction[some] * self.penalty
            curve = _dot(direction, product)
            length = np.where(active & (curve > 0), size / np.where(curve > 0, curve, 1), 0)
            step += length[:, None, None] * direction
            left -= length[:, None, None] * product
            gained = length * size / 2
            gain += gained
            toward = precondition(left)
            after = _dot(left, toward)
            # Far from the minimum, an even rougher step is enough.
            rough = np.clip(np.sqrt(gain / at.value), ROUGH, 0.5)
            active &= (after > rough**2 * start) | (gained > ROUGH * gain)
            active &= after > 0
            share = np.where(active, after / np.where(size > 0, size, 1), 0)
            direction, size = toward + share[:, None, None] * direction, after
        return step, gain

    def _descend(self, at: _State, step: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Take steps, shortened until the objective falls; return which heads moved."""
        length, moved = np.ones(len(step)), np.zeros(len(step), bool)
        for _ in range(SHORTER):
            trial = at.found - length[:, None, None] * step
            objective = self._objective(trial, at.c)
            # Half of the slope is the gain; rounding moves values up and down.
            lower = objective[0] <= at.value * (1 + self.rounding) - 2e-4 * length * gain
            at.move(trial, objective, lower & ~moved)
            moved |= lower
            if moved.all():
                break
            length *= np.where(moved, 1, 0.4)
        return moved


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the scalar product of each head's arrays, (head, class, coordinate)."""
    return np.einsum("hij,hij->h", a, b)
