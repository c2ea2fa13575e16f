"""Logistic regression: heads that differ in ``C`` are fitted one after the other, from small ``C``.

Each minimizes ``C · Σ weight · loss + ½‖coefficients‖²``, as in scikit-learn, by SciPy's L-BFGS. It
starts where the path of the heads before leads, in variables in which the curvature of each class
is close to the identity. Where a head starts has no part in when it has converged.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featurestore.heads.joint.linear import chunks, is_default, is_positive

PENALTY = "C"
# Beyond these, the objective has too few digits in float64 to tell whether a head has converged.
LEAST_C, MOST_C = 1e-9, 1e9
# A head has converged when its objective is estimated to be above the lowest by this share of it.
TOLERANCE = 5e-7
# Rows of at most so many numbers are computed in float64, which takes no noticeable time there.
SMALL = 1 << 18
# Numbers in the curvatures of all classes; with more, the classes share one.
MOST_CURVATURE = 1 << 27
# Rows that a curvature is estimated from, for each feature.
ROWS_A_FEATURE = 8
# A curvature is used for heads within this distance in log C, and for so many iterations of one.
REACH, ITERATIONS = 0.8, 60
# The estimate of the gap holds if the objective fell by at most this factor since the curvature.
NEAR = 1.05
# Numbers in the products of rows, features and classes that one thread computes.
ONE_THREAD = 1 << 25


def supports(estimator: Any) -> bool:
    """Return whether an unfitted estimator is fitted here.

    It is a scikit-learn `LogisticRegression` with ``C`` from LEAST_C to MOST_C, valid ``max_iter``
    and ``fit_intercept``, perhaps class weights, and else its defaults; scikit-learn fits others.
    """
    from sklearn.linear_model import LogisticRegression

    if type(estimator) is not LogisticRegression or getattr(estimator, "_skl_callbacks", None):
        return False
    return (
        is_default(estimator, {"C", "max_iter", "fit_intercept", "class_weight", "random_state"})
        and is_positive(estimator.C, Real)
        and LEAST_C <= estimator.C <= MOST_C
        and is_positive(estimator.max_iter, Integral)
        and isinstance(estimator.fit_intercept, bool | np.bool_)
    )


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit heads that differ in ``C``, in place.

    Parameters
    ----------
    estimators : sequence of LogisticRegression
        That `supports` accepts.
    X : float32 array, (row, feature)
        Standardized.
    y : array, (row,)
        Labels.

    Raises
    ------
    ValueError
        As scikit-learn does, for NaN, too few rows, fewer than two classes, wrong class weights.

    Warns
    -----
    ConvergenceWarning
        For each head that has not converged, which is its ``estimator``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data

    first = estimators[0]
    X, y = validate_data(first, X, y, dtype=[np.float64, np.float32])
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            "This solver needs samples of at least 2 classes in the data, but the data contains "
            f"only one class: {classes[0]!r}"
        )
    weights = compute_class_weight(first.class_weight, classes=classes, y=y)[codes]
    # Threads that wait for each other on small products made heads 15 times slower where other
    # programs use the processors.
    threads = 1 if X.size * len(classes) < ONE_THREAD else None
    with threadpool_limits(threads, "blas"), np.errstate(over="ignore", under="ignore"):
        rows, to_features = _in_their_span(X)
        path = _Path(_Loss(rows, codes, weights, len(classes), bool(first.fit_intercept)))
        for head in sorted(estimators, key=lambda head: head.C):
            coefficients, iterations, converged = path.minimize(float(head.C), int(head.max_iter))
            head.classes_, head.n_iter_ = classes, np.array([max(iterations, 1)], np.int32)
            head.n_features_in_ = X.shape[1]
            head.coef_ = to_features(coefficients[:, : rows.shape[1]]).astype(X.dtype)
            head.intercept_ = np.zeros(len(coefficients), X.dtype)
            if first.fit_intercept:
                head.intercept_ = coefficients[:, -1].astype(X.dtype)
            if not converged:
                remedy = f"raise max_iter, now {head.max_iter}"
                warning = ConvergenceWarning(
                    f"logistic regression with C={head.C:g} has not converged after {iterations} "
                    f"iterations; {remedy if iterations >= head.max_iter else 'lower C'}"
                )
                warning.estimator = head
                warnings.warn(warning, stacklevel=2)


def _in_their_span(X: np.ndarray) -> tuple[np.ndarray, Any]:
    """Return rows in an orthonormal basis of their span if that has fewer dimensions.

    The second result turns coefficients (class, coordinate) into those of features. A penalty is
    the same in both, and the lowest objective lies in the span.
    """
    from scipy.linalg import eigh

    if len(X) >= X.shape[1]:
        return X, np.asarray
    products = np.zeros((len(X), len(X)))
    for part in chunks(X.shape[1], len(X)):
        columns = X[:, part].astype(np.float64)
        products += columns @ columns.T
    values, vectors = eigh(products, overwrite_a=True, check_finite=False)
    # Products of doubles have no more digits.
    kept = values > values[-1] * 1e-12
    vectors, lengths = vectors[:, kept], np.sqrt(values[kept])
    basis = (vectors / lengths).T
    return vectors * lengths, lambda coefficients: (coefficients @ basis) @ X


class _Loss:
    """The weighted loss of all rows for coefficients (column, feature and, last, intercept).

    There is a column for each class, or one for two classes.
    """

    def __init__(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, classes: int, intercept: bool
    ) -> None:
        kind = np.float64 if X.size <= SMALL else X.dtype
        if intercept:
            X = np.hstack([X, np.ones((len(X), 1), X.dtype)])
        self.rows, self.kind = np.asarray(X, kind), kind
        self.codes, self.weights, self.classes = codes, weights, classes
        self.penalty = np.ones(X.shape[1])
        self.penalty[-1] -= intercept
        self.shape = (1 if classes == 2 else classes, X.shape[1])

    def _chunks(self, coefficients: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield slices, rows, and the log probabilities of all classes, (row, class)."""
        from scipy.special import log_softmax

        single = coefficients.T.astype(self.kind)
        for part in chunks(*self.rows.shape):
            rows = self.rows[part].astype(self.kind, copy=False)
            logits = rows @ single
            if self.classes == 2:
                logits = np.hstack([np.zeros_like(logits), logits])
            yield part, rows, log_softmax(logits, axis=1)

    def __call__(self, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient, (column, feature)."""
        loss, gradient = 0.0, np.zeros(self.shape)
        for part, rows, log_probabilities in self._chunks(coefficients):
            own = np.arange(len(rows)), self.codes[part]
            loss -= float(self.weights[part] @ log_probabilities[own])
            residual = np.exp(log_probabilities)
            residual[own] -= 1
            residual *= self.weights[part, None].astype(self.kind)
            gradient += residual[:, -len(gradient) :].T @ rows
        return loss, gradient

    def curvatures(self, coefficients: np.ndarray) -> list[np.ndarray]:
        """Return for each column the second derivatives, (feature, feature), or one mean of all.

        Of many rows, a random part: each with a probability in proportion to its share.
        """
        share = np.empty((len(self.rows), self.shape[0]))
        for part, _, log_probabilities in self._chunks(coefficients):
            probabilities = np.exp(log_probabilities[:, -self.shape[0] :])
            share[part] = probabilities * (1 - probabilities)
        share *= self.weights[:, None]
        draw, most = np.random.default_rng(0), ROWS_A_FEATURE * self.shape[1]
        # Of few rows, many passes cost less than the curvatures of all classes.
        if len(share) <= most or self.shape[0] * self.shape[1] ** 2 > MOST_CURVATURE:
            share = share.mean(axis=1, keepdims=True)
        curvatures = []
        for column in share.T:
            chosen: Any = slice(None)
            scale = column
            if len(column) > most:
                chance = np.minimum(1, most * column / max(column.sum(), 1e-300))
                chosen = np.flatnonzero(draw.random(len(column)) < chance)
                scale = column[chosen] / chance[chosen]
            rows = np.sqrt(scale)[:, None].astype(self.rows.dtype) * self.rows[chosen]
            curvatures.append(rows.T @ rows)
        return curvatures


class _Path:
    """The heads that were minimized, by rising ``C``, and the curvature that serves for the next.

    Parameters
    ----------
    loss : _Loss
    """

    def __init__(self, loss: _Loss) -> None:
        self.loss = loss
        self.solved: list[tuple[float, np.ndarray]] = []
        self.place, self.factors = -np.inf, list[np.ndarray]()

    def minimize(self, c: float, max_iter: int) -> tuple[np.ndarray, int, bool]:
        """Return coefficients, iterations, and whether they have converged."""
        place, iterations = float(np.log(c)), 0
        coefficients = self._start(place)
        if place - self.place > REACH:
            self._curve(place, coefficients)
        while True:
            allowed = min(ITERATIONS, max_iter - iterations)
            coefficients, first, value, gap, took = self._descend(c, coefficients, allowed)
            iterations += took
            # The gap is estimated with a curvature that must be of somewhere near.
            converged = gap <= TOLERANCE * value and first <= NEAR * value
            if converged or iterations >= max_iter:
                break
            if took < allowed and first - value <= TOLERANCE * value < gap:
                if self.loss.kind is np.float64:
                    break
                # The rounding errors of float32 hide which way is down.
                self.loss.kind = np.float64
            self._curve(place, coefficients)
        if len(coefficients) > 1:
            # To shift all classes alike changes no prediction.
            coefficients = coefficients - coefficients.mean(axis=0)
        self.solved = [*self.solved[-2:], (place, coefficients)]
        return coefficients, iterations, converged

    def _curve(self, place: float, coefficients: np.ndarray) -> None:
        from scipy.linalg import cholesky

        self.place, self.factors = place, []
        for curvature in self.loss.curvatures(coefficients):
            hessian = np.exp(place) * curvature.astype(np.float64)
            rounding = np.finfo(curvature.dtype).eps * hessian.trace() + 1e-12
            hessian[np.diag_indices_from(hessian)] += self.loss.penalty + rounding
            self.factors.append(cholesky(hessian, lower=True, overwrite_a=True, check_finite=False))

    def _start(self, place: float) -> np.ndarray:
        """Return Lagrange's polynomial in log ``C`` through the last three heads."""
        start = np.zeros(self.loss.shape)
        near = dict(self.solved)
        for node, coefficients in near.items():
            others = np.array([other for other in near if other != node])
            start += np.prod((place - others) / (node - others)) * coefficients
        return start

    def _descend(
        self, c: float, start: np.ndarray, iterations: int
    ) -> tuple[np.ndarray, float, float, float, int]:
        """Return coefficients, objectives before and after, the gap to the lowest, iterations."""
        from scipy.linalg import solve_triangular
        from scipy.optimize import minimize

        penalty, factors = self.loss.penalty, self.factors
        # The factors are those of another C.
        scale, shared = np.sqrt(c / np.exp(self.place)), len(factors) < len(start)

        def solve(values: np.ndarray, trans: int) -> np.ndarray:
            options = {"trans": trans, "lower": True, "check_finite": False}
            if shared:
                return solve_triangular(factors[0], values.T, **options).T / scale
            pairs = zip(factors, values, strict=True)
            return np.stack([solve_triangular(*pair, **options) for pair in pairs]) / scale

        first, gap = np.nan, np.inf

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal first, gap
            coefficients = solve(flat.reshape(start.shape), 1)
            loss, gradient = self.loss(coefficients)
            shrunk = coefficients * penalty
            slope = solve(c * gradient + shrunk, 0)
            # Half of Newton's decrement squared, were the curvature exact (Boyd and Vandenberghe
            # 2004, section 9.5.1).
            gap = float(np.square(slope).sum() / 2)
            value = c * loss + float(np.square(shrunk).sum()) / 2
            first = value if np.isnan(first) else first
            return value, slope.ravel()

        def ended(intermediate_result: Any) -> None:
            if gap <= TOLERANCE * intermediate_result.fun:
                raise StopIteration

        begin = [factors[0 if shared else row].T @ values for row, values in enumerate(start)]
        result = minimize(
            objective,
            scale * np.concatenate(begin),
            jac=True,
            method="L-BFGS-B",
            callback=ended,
            options={"maxcor": 20, "maxiter": iterations, "ftol": 0, "gtol": 0},
        )
        coefficients = solve(result.x.reshape(start.shape), 1)
        return coefficients, first, float(result.fun), gap, int(result.nit)
