"""How well heads will do on a layer's features, estimated before any head is trained.

Both scores are computed from one decomposition of the standardized rows, X = U·S·Vᵀ. Higher is
better.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Score = Literal["logme", "ridge"]
SCORES: tuple[Score, ...] = get_args(Score)
# Multiplied by the number of features, which is the mean square of a row.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Directions with less than this part of the largest variance are left out.
SMALLEST = 1e-10
TINY = float(np.finfo(np.float64).tiny)


def transferability(
    X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float | None]:
    """Return the scores of a layer, from training rows alone.

    Parameters
    ----------
    X : ndarray (row, feature)
        float32.
    y : ndarray (row,)
        Class codes, int; or values, float.
    groups : ndarray (row,), optional
        Rows are not predicted from rows of their own group.

    Returns
    -------
    dict
        The value of each of `SCORES`. Ridge is None if all rows are of one group.
    """
    targets = np.asarray(y, np.float64)[:, None]
    if y.dtype.kind == "i":
        targets = (y[:, None] == np.unique(y)).astype(np.float64)
    left, squares = _decomposed(X)
    groups = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
    centred = targets - targets.mean(axis=0)
    scores: dict[str, float | None] = {"logme": logme(left, squares, centred), "ridge": None}
    if groups.any():
        penalties = [penalty * X.shape[1] for penalty in PENALTIES]
        residuals = ridge(left, squares, centred, groups, penalties)
        if y.dtype.kind == "i":
            # Of classes with as many votes, the first.
            predicted = (targets - residuals).round(9).argmax(axis=1)
            scores["ridge"] = float((predicted == targets.argmax(axis=1)).mean())
        else:
            total = max(float(np.square(centred).sum()), TINY)
            scores["ridge"] = 1 - float(np.square(residuals).sum()) / total
    return scores


def _decomposed(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardize the rows; return U (row, direction) and S² (direction,), float64."""
    Z = X.astype(np.float64)
    mean = Z.mean(axis=0)
    Z -= mean
    scale = np.sqrt(np.einsum("rf,rf->f", Z, Z) / len(Z))
    # A feature that is constant, but for rounding, becomes zero.
    scale[scale <= 1e-7 * np.abs(mean)] = np.inf
    Z /= scale
    wide = Z.shape[1] > len(Z)
    squares, directions = np.linalg.eigh(Z @ Z.T if wide else Z.T @ Z)
    used = squares > max(SMALLEST * squares[-1], TINY)
    squares, directions = squares[used], directions[:, used]
    return directions if wide else Z @ (directions / np.sqrt(squares)), squares


def ridge(
    left: np.ndarray,
    squares: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    penalties: list[float],
) -> np.ndarray:
    """Return the residuals (row, target) of ridge that predicts each row from other groups.

    One penalty serves all rows: that with the least squared error. Means and deviations are those
    of all rows. The residuals r of a fit on all rows give those without a group, ``(I - H)⁻¹ r``,
    where H is the part of the hat matrix between its rows: Cook and Weisberg, "Residuals and
    Influence in Regression", 1982.
    """
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    candidates = []
    for penalty in penalties:
        shrunk = squares / (squares + penalty)
        residuals = targets - (left * shrunk) @ (left.T @ targets)
        if len(members) == len(left):  # Each row is a group.
            residuals /= (1 - np.square(left) @ shrunk - 1 / len(left))[:, None]
        else:
            for rows in members:
                hat = (left[rows] * shrunk) @ left[rows].T + 1 / len(left)
                residuals[rows] = np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
        candidates.append(residuals)
    return min(candidates, key=lambda residuals: float(np.square(residuals).sum()))


def logme(left: np.ndarray, squares: np.ndarray, targets: np.ndarray) -> float:
    """Return LogME: the log evidence of a Bayesian linear model for each row and target.

    References
    ----------
    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning", ICML 2021; its fixed-point iteration is from "Ranking and Tuning Pre-trained Models",
    JMLR 2022. Here targets are centred and features standardized.
    """
    return float(np.mean([_evidence(left, squares, target) for target in targets.T]))


def _evidence(left: np.ndarray, squares: np.ndarray, target: np.ndarray) -> float:
    # The mean, which is taken off, is one of the dimensions of the targets.
    count = len(target) - 1
    along = np.square(left.T @ target)
    beside = max(0.0, float(target @ target - along.sum()))
    alpha = beta = 1.0
    for _ in range(100):
        ratio = alpha / beta
        used = (squares / (squares + ratio)).sum()
        weights = (squares * along / np.square(squares + ratio)).sum()
        residual = (along / np.square(1 + squares / ratio)).sum() + beside
        # Both are positive, even without features or residuals.
        alpha = max(used, 1e-9) / (weights + 1e-5)
        beta = max(count - used, 1e-9) / (residual + 1e-5)
        if abs(alpha / beta - ratio) <= 1e-3 * ratio:
            break
    evidence = (
        len(squares) * np.log(alpha)
        + count * np.log(beta / (2 * np.pi))
        - np.log(alpha + beta * squares).sum()
        - beta * residual
        - alpha * weights
    )
    return float(evidence / 2 / count)
