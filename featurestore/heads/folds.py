"""Cross-validation: heads measured on training rows that they were not fitted on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from featurestore.errors import HeadError
from featurestore.heads.rows import Rows
from featurestore.settings import Settings
from featurestore.table import plural

Folds = list[tuple[np.ndarray, np.ndarray]]

# In the place of a split, the name of metrics over folds: ``folds.accuracy``.
FOLDS = "folds"


class CrossValidation(Settings):
    """How heads are cross-validated on the training rows.

    Each fold is held out once. Each repetition has other folds, and another seed of everything
    random in the heads.
    """

    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validate on this number of folds of the train split."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Repeat the folds with this number of seeds."""

    @field_validator("seeds")
    @classmethod
    def _with_folds(cls, seeds: int, info: ValidationInfo) -> int:
        if seeds > 1 and info.data.get("folds", True) is None:
            raise ValueError("repeats the folds, but there are none; set folds too, such as 5")
        return seeds

    def is_in(self, folds: Mapping[str, Any] | None) -> bool:
        """Whether a head was cross-validated in this way, with at least as many seeds."""
        return folds is not None and (folds["folds"] == self.folds and folds["seeds"] >= self.seeds)

    def repetitions(self, rows: Rows, seed: int) -> list[Folds]:
        """Return the folds of each repetition, from this seed on; none without folds."""
        return [self.split(rows, seed + n) for n in range(self.seeds if self.folds else 0)]

    def split(self, rows: Rows, seed: int) -> Folds:
        """Return the folds of one repetition; HeadError if there are too few rows or groups."""
        assert self.folds is not None
        dataset, numbers = rows.features.dataset, rows.numbers("train")
        image_of = dataset.image_rows[numbers]
        images = numbers[image_of == numbers]
        groups = None if dataset.groups is None else dataset.groups[images]
        most = len(images) if groups is None else len(np.unique(groups))
        if most == len(images):
            groups = None  # as for the plain images of an augmented data set
        if most < self.folds:
            what = "training row" if groups is None else "group"
            instead = f"take folds={most} at most" if most > 1 else "fit without folds"
            raise HeadError(
                f"data set {dataset.name!r} has {plural(most, what)} in its train split, too few "
                f"for {self.folds} folds; {instead}"
            )
        folds = split(dataset.targets[images], groups, self.folds, seed)
        if len(folds) < 2:
            needed = (
                "classes to learn from" if rows.task == "classification" else "different labels"
            )
            raise HeadError(
                f"the training rows of data set {dataset.name!r} cannot be divided into "
                f"{self.folds} folds with two {needed} in each; take another number of folds, or "
                "fit without"
            )
        # Views are fitted on with their images, and not measured on.
        return [
            (np.flatnonzero(np.isin(image_of, images[train])), numbers.searchsorted(images[held]))
            for train, held in folds
        ]


def split(y: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> Folds:
    """Return the training and the held-out rows of each fold that can be fitted and scored.

    Folds have equal shares of each class, as far as its rows suffice, and do not share groups.

    Parameters
    ----------
    y : numpy.ndarray (row,)
        Class codes, int; or values, float.
    groups : numpy.ndarray (row,) or None
    folds, seed : int
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classes = y.dtype.kind == "i"
    if groups is not None:
        splitter = StratifiedGroupKFold if classes else GroupKFold
    else:
        stratified = classes and np.bincount(y).max() >= folds
        splitter = StratifiedKFold if stratified else KFold
    with warnings.catch_warnings():
        # Of classes with fewer rows than folds: some folds have none of them.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter(folds, shuffle=True, random_state=seed).split(y, y, groups))
    # A classifier needs two classes to learn from, R² two values to be measured on.
    return [
        (train, held_out)
        for train, held_out in parts
        if len(np.unique(y[train if classes else held_out])) > 1
    ]


def folds_document(
    validation: CrossValidation, metrics: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what a head records of its folds, from the metrics on each: see `Head.folds`."""
    names = [name for name in metrics[0] if name not in ("rows", "confusion")]
    return {
        "folds": validation.folds,
        "seeds": validation.seeds,
        "rows": float(np.mean([fold["rows"] for fold in metrics])),
        "metrics": {name: [fold[name] for fold in metrics] for name in names},
    }


def common(documents: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]] | None:
    """Return the folds that heads have in common: those of the first seeds.

    None if one of them was not cross-validated, or on another number of folds.
    """
    validated = [document for document in documents if document]
    if len(validated) < len(documents) or len({folds["folds"] for folds in validated}) != 1:
        return None
    seeds = min(folds["seeds"] for folds in validated)
    # Some seeds may have a fold less, which could not be fitted.
    count = min(len(values) for folds in validated for values in folds["metrics"].values())
    return [
        {
            **folds,
            "seeds": seeds,
            "metrics": {name: values[:count] for name, values in folds["metrics"].items()},
        }
        for folds in validated
    ]


def mean_and_spread(folds: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Return the mean and the standard deviation of a metric over folds; None if it is unknown."""
    values = folds.get("metrics", {}).get(metric) or [None]
    if any(value is None for value in values):
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1))


def p_value(ours: Mapping[str, Any], best: Mapping[str, Any], metric: str) -> float:
    """Return the two-sided p-value of the corrected paired t-test over folds.

    The variance of the differences is multiplied by ``1/J + 1/(folds - 1)`` instead of ``1/J``,
    where J is the number of differences: the training rows of two folds overlap, so that their
    scores are not independent.

    References
    ----------
    Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003);
    Bouckaert and Frank, "Evaluating the Replicability of Significance Tests", PAKDD 2004.
    """
    from scipy.special import stdtr

    differences = np.subtract(ours["metrics"][metric], best["metrics"][metric])
    count, variance = len(differences), float(np.var(differences, ddof=1))
    mean = float(differences.mean())
    if variance == 0:
        return float(mean == 0)
    t = mean / np.sqrt((1 / count + 1 / (best["folds"] - 1)) * variance)
    return float(2 * stdtr(count - 1, -abs(t)))
