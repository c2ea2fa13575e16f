"""How well heads will do on a layer's features, estimated before any head is trained.

Both scores are computed from one decomposition of the standardized rows, X = U·S·Vᵀ. Higher is
better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Score = Literal["logme", "ridge"]
SCORES: tuple[Score, ...] = get_args(Score)
# Multiplied by the number of features, which is the mean square of a row.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Directions with less than this part of the largest variance are left out.
SMALLEST = 1e-10
TINY = float(np.finfo(np.float64).tiny)
# Numbers that are converted to float64 at once.
PART = 4_000_000


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
        The value of each of `SCORES`, and ``spread``, the standard error of ridge. Ridge and its
        spread are None if all rows are of one group.
    """
    rows = Decomposed.of(X, y, groups)
    scores: dict[str, float | None] = {"logme": logme(rows), "ridge": None, "spread": None}
    if rows.groups.any():
        shares = ridge(rows)
        scores["ridge"] = float(shares.mean())
        scores["spread"] = float(shares.std() / np.sqrt(len(shares)))
    return scores


@dataclass(frozen=True)
class Decomposed:
    """The training rows of a layer, decomposed.

    Attributes
    ----------
    left : ndarray (row, direction)
        U, float64.
    squares : ndarray (direction,)
        Squares of the singular values, S².
    features : int
    targets : ndarray (row, target)
        Centred: one column for each class, which is 1 in its rows and else 0; or the values.
    codes : ndarray (row,) or None
        Class of each row, from 0; None for regression.
    groups : ndarray (row,)
        Numbers from 0; each row has its own, if there are no groups.
    """

    left: np.ndarray
    squares: np.ndarray
    features: int
    targets: np.ndarray
    codes: np.ndarray | None
    groups: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> Decomposed:
        """Standardize ``X``, float32 (row, feature), and decompose it."""
        codes = None
        targets = np.asarray(y, np.float64)[:, None]
        if y.dtype.kind == "i":
            classes, codes = np.unique(y, return_inverse=True)
            targets = np.eye(len(classes))[codes]
        left, squares = _decomposed(X)
        targets = targets - targets.mean(axis=0)
        own = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
        return cls(left, squares, X.shape[1], targets, codes, own)


def _decomposed(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return U and S² of the standardized rows."""
    count, features = X.shape
    wide = features > count
    gram = np.zeros((count, count) if wide else (features, features))
    step = max(1, PART // count)
    mean, scale = np.empty(features), np.empty(features)
    for start in range(0, features, step):
        part = X[:, start : start + step].astype(np.float64)
        span = slice(start, start + step)
        mean[span], scale[span] = part.mean(axis=0), part.std(axis=0)
        # A feature that is constant, but for rounding, stays zero.
        scale[span][scale[span] <= 1e-7 * np.abs(mean[span])] = np.inf
        if wide:
            part = (part - mean[span]) / scale[span]
            gram += part @ part.T
    if wide:
        squares, left = np.linalg.eigh(gram)
    else:
        Z = (X - mean) / scale
        squares, right = np.linalg.eigh(Z.T @ Z)
    used = squares > max(SMALLEST * squares[-1], TINY)
    squares = squares[used]
    left = left[:, used] if wide else Z @ (right[:, used] / np.sqrt(squares))
    return left, squares


def ridge(rows: Decomposed) -> np.ndarray:
    """Return whether ridge predicts each row, or its share in R², from the others: (row,).

    The others are the rows of other groups. One penalty serves all rows: that with the least
    squared error. Means and deviations are those of all rows.
    """
    residuals = []
    for penalty in PENALTIES:
        shrunk = rows.squares / (rows.squares + penalty * rows.features)
        fitted = (rows.left * shrunk) @ (rows.left.T @ rows.targets)
        residuals.append(_left_out(rows, shrunk, rows.targets - fitted))
    best = min(residuals, key=lambda left_out: float(np.square(left_out).sum()))
    return _shares(rows, best)


def _left_out(rows: Decomposed, shrunk: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Return the residuals of a fit without a row and its group, from those of a fit on all rows.

    They are ``(I - H)⁻¹ r``, where H is the part of the hat matrix between these rows: Cook and
    Weisberg, "Residuals and Influence in Regression", 1982.
    """
    left, count = rows.left, len(rows.left)
    if rows.groups.max() + 1 == count:
        leverage = np.square(left) @ shrunk + 1 / count
        return residuals / (1 - leverage)[:, None]
    left_out = np.empty_like(residuals)
    order = np.argsort(rows.groups, kind="stable")
    for part in np.split(order, np.cumsum(np.bincount(rows.groups))[:-1]):
        hat = (left[part] * shrunk) @ left[part].T + 1 / count
        left_out[part] = np.linalg.solve(np.eye(len(part)) - hat, residuals[part])
    return left_out


def _shares(rows: Decomposed, residuals: np.ndarray) -> np.ndarray:
    """Return the share of each row in the accuracy or in R², which is the mean of the shares."""
    if rows.codes is None:
        return 1 - np.square(residuals[:, 0]) / max(np.square(rows.targets).mean(), TINY)
    # Centred targets of a class differ from 0 and 1 by its frequency.
    frequency = np.bincount(rows.codes) / len(rows.codes)
    predicted = rows.targets - residuals + frequency
    # Of classes with as many votes, the first.
    return (predicted.round(9).argmax(axis=1) == rows.codes).astype(np.float64)


def logme(rows: Decomposed) -> float:
    """Return LogME: the log evidence of a Bayesian linear model for each row and target.

    References
    ----------
    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning", ICML 2021; its fixed-point iteration is from "Ranking and Tuning Pre-trained Models",
    JMLR 2022. Here targets are centred and features standardized.
    """
    return float(np.mean([_evidence(rows, target) for target in rows.targets.T]))


def _evidence(rows: Decomposed, target: np.ndarray) -> float:
    # The mean, which is taken off, is one of the dimensions of the targets.
    squares, count = rows.squares, len(target) - 1
    along = np.square(rows.left.T @ target)
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
