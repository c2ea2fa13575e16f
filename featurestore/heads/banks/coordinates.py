"""Rows in the eigenbasis of their covariance, where linear heads are well conditioned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, svd

from featurestore.heads.banks.linear import mean, parts


@dataclass(frozen=True)
class Coordinates:
    """Rows in an orthonormal basis in which their covariance is diagonal.

    Attributes
    ----------
    rows : float32 or float64 array, (row, coordinate)
        The last coordinate is 1 if there is an intercept.
    weights : float64 array, (row,)
    intercept : bool
    """

    rows: np.ndarray
    weights: np.ndarray
    intercept: bool
    centre: np.ndarray
    basis: np.ndarray
    source: np.ndarray | None

    @classmethod
    def of(
        cls, X: np.ndarray, weights: np.ndarray, intercept: bool, kind: type = np.float32
    ) -> Coordinates:
        """Rotate rows, (row, feature). With fewer rows than features, there is one for each row.

        ``kind`` is the type of the result, float32 or float64.
        """
        X = np.asarray(X, kind)
        centre = mean(X, weights) if intercept else np.zeros(X.shape[1])
        centre = centre.astype(kind)
        wide = len(X) < X.shape[1] and kind is np.float32
        if wide:
            rows, basis = _by_rows(X, centre)
        elif len(X) < X.shape[1]:
            # Products of rows would lose half of the digits.
            left, values, right = svd(X - centre, full_matrices=False, overwrite_a=True)
            rows, basis = left * values, right.T
        else:
            rows, basis = _by_features(X, centre, weights)
        if intercept:
            rows = np.hstack([rows, np.ones((len(X), 1), kind)])
        return cls(rows, weights, intercept, centre, basis, X if wide else None)

    def spread(self) -> np.ndarray:
        """Return the weighted sum of squares of each coordinate."""
        total = np.zeros(self.rows.shape[1])
        for part in parts(*self.rows.shape):
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
            coefficients = np.empty((len(by_row), len(self.centre)))
            for part in parts(len(self.centre), len(self.source)):
                coefficients[:, part] = by_row @ (self.source[:, part] - self.centre[part])
            coefficients = coefficients.reshape(*found.shape[:2], -1)
        return coefficients, intercept - coefficients @ self.centre


def _by_features(
    X: np.ndarray, centre: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rotated rows, (row, coordinate), and the basis, (feature, coordinate)."""
    covariance = np.zeros((X.shape[1], X.shape[1]))
    for part in parts(*X.shape):
        centred = np.sqrt(weights[part]).astype(X.dtype)[:, None] * (X[part] - centre)
        covariance += centred.T @ centred
    basis = eigh(covariance, overwrite_a=True, check_finite=False)[1]
    rows, rotation = np.empty(X.shape, X.dtype), basis.astype(X.dtype)
    for part in parts(*X.shape):
        np.matmul(X[part] - centre, rotation, out=rows[part])
    return rows, basis


def _by_rows(X: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rotated rows, (row, coordinate), and what makes coordinates of rows, the same."""
    products = np.zeros((len(X), len(X)))
    for part in parts(X.shape[1], len(X)):
        centred = (X[:, part] - centre[part]).astype(np.float64)
        products += centred @ centred.T
    values, vectors = eigh(products, overwrite_a=True, check_finite=False)
    # Products of doubles have no more digits.
    kept = values > values[-1] * 1e-12
    length = np.sqrt(values[kept])
    return (vectors[:, kept] * length).astype(X.dtype), vectors[:, kept] / length
