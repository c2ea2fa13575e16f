"""The logistic losses of many heads on the same rows, their gradients and second derivatives."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, softmax

from featurestore.heads.banks.coordinates import Coordinates

# Numbers in the logits of a chunk of rows; rows of a sample for each coordinate of a block.
CHUNK_SIZE, SAMPLE = 1 << 20, 3


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

    def blocks(self, found: np.ndarray, leading: int) -> np.ndarray:
        """Return second derivatives of a head's loss by the last coordinates of each class.

        They are sums over a sample of rows of its own for each class. A row is chosen with a chance
        in proportion to how much the loss curves there, and weighs the inverse of that chance (Xu
        et al. 2016, Sub-sampled Newton methods with non-uniform sampling).

        Parameters
        ----------
        found : array, (class, coordinate)
        leading : int
            How many of the coordinates; the last ones have the largest spread.

        Returns
        -------
        float32 array, (class, leading, leading)
        """
        rows = self.coordinates.rows
        share = _probabilities(rows @ found.T.astype(np.float32))
        blocks = np.empty((self.columns, leading, leading), np.float32)
        for block, own in zip(blocks, share.T, strict=True):
            curved = own.astype(np.float64) * (1 - own) * self.weights + 1e-30
            chance = np.minimum(curved * (SAMPLE * leading / curved.sum()), 1)
            # At equal distances in the sum of the chances.
            chosen = np.flatnonzero(np.diff(np.floor(np.cumsum(chance) + 0.5), prepend=0))
            scale = np.sqrt(curved[chosen] / chance[chosen]).astype(np.float32)
            some = rows[chosen, -leading:] * scale[:, None]
            np.matmul(some.T, some, out=block)
        return blocks


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (row, class); of the second class alone, if the logits are its."""
    if logits.shape[1] == 1:
        return expit(logits)
    return softmax(logits, axis=1)


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
