"""The logistic losses of many heads on the same rows, their gradients and second derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featurestore.heads.banks.coordinates import Coordinates

# Numbers in the logits of a chunk of rows.
CHUNK_SIZE = 1 << 20


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
        self.weights = coordinates.weights.astype(coordinates.rows.dtype)

    def start(self) -> np.ndarray:
        """Return coefficients, (class, coordinate), that give each row the share of its class."""
        found = np.zeros((self.columns, self.coordinates.rows.shape[1]))
        if self.coordinates.intercept:
            weights = self.coordinates.weights
            share = np.log(np.bincount(self.codes, weights) + 1e-3 * weights.mean())
            found[:, -1] = share[1] - share[0] if self.columns == 1 else share - share.mean()
        return found

    def __call__(self, found: np.ndarray) -> tuple[np.ndarray, ...]:
        """Evaluate coefficients (head, class, coordinate).

        Returns
        -------
        loss : array, (head,)
            Weighted sum over the rows.
        gradient : array, (head, class, coordinate)
        curvature : array, (head, class, class)
            Weighted mean over the rows of the second derivatives by the logits.
        share : array, (head, class, row)
            Probabilities; for two classes, the second derivatives.
        """
        heads, columns, size = found.shape
        rows, codes = self.coordinates.rows, self.codes
        single = found.reshape(-1, size).astype(rows.dtype)
        loss, gradient = np.zeros(heads), np.zeros((heads * columns, size))
        curvature = np.zeros((heads, columns, columns))
        share = np.empty((heads, columns, len(rows)), rows.dtype)
        for part in self._chunks(heads):
            logits = (single @ rows[part].T).reshape(heads, columns, -1)
            function = _binary if columns == 1 else _multinomial
            losses, residuals, curved, share[..., part] = function(
                logits, codes[part], self.weights[part]
            )
            loss += losses
            curvature += curved
            gradient += residuals.reshape(heads * columns, -1) @ rows[part]
        total = self.coordinates.weights.sum()
        return loss, gradient.reshape(found.shape), curvature / total, share

    def product(self, share: np.ndarray, direction: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Multiply the Hessians of some heads' losses by directions (head, class, coordinate)."""
        rows, (_, columns, size) = self.coordinates.rows, direction.shape
        single = direction[heads].reshape(-1, size).astype(rows.dtype)
        product = np.zeros((len(single), size))
        for part in self._chunks(len(heads)):
            bent = (single @ rows[part].T).reshape(len(heads), columns, -1)
            own = share[heads, :, part]
            if columns > 1:
                # No probability near 1 is subtracted from another: their digits would be lost.
                bent -= bent[:, self.codes[part], np.arange(bent.shape[2])][:, None]
            bent *= own
            if columns > 1:
                bent -= own * bent.sum(axis=1, keepdims=True)
                bent *= self.weights[part]
            product += bent.reshape(len(single), -1) @ rows[part]
        return product.reshape(len(heads), columns, size)

    def _chunks(self, heads: int) -> Iterator[slice]:
        step = max(64, CHUNK_SIZE // (heads * self.columns))
        for start in range(0, len(self.codes), step):
            yield slice(start, start + step)


def _multinomial(
    logits: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return losses, residuals, curvature and shares of logits (head, class, row).

    This overwrites the logits. The loss is log1p of the odds against the true class, so that small
    losses keep their digits.
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
    curvature[:, diagonal, diagonal] = 0
    curvature[:, diagonal, diagonal] = -curvature.sum(axis=2)
    weighted[:, codes, row] = -weights * others / total
    return losses @ weights.astype(np.float64), weighted, curvature, share


def _binary(logits: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Do the same for the logit of the second class, (head, 1, row)."""
    sign = np.where(codes == 1, -1, 1).astype(logits.dtype)
    against = logits * sign
    small = np.exp(-np.abs(against))
    losses = np.maximum(against, 0) + np.log1p(small)
    wrong = np.where(against > 0, 1, small) / (1 + small)
    bent = wrong * (1 - wrong) * weights
    curvature = bent.sum(axis=2, dtype=np.float64)[..., None]
    return losses[:, 0] @ weights.astype(np.float64), wrong * (sign * weights), curvature, bent
