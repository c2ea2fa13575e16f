"""A fitted head: predicts from features, knows how well and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from featurestore.errors import (
    DamagedError,
    HeadError,
    NotFoundError,
    StoreFormatError,
    nearest,
)
from featurestore.heads import persist
from featurestore.heads.document import fault
from featurestore.store import FeatureKey, FeatureStore

CONFUSION_FILE = "confusion.json"
FORMAT = 1
# Bytes of features that go through a Keras head at once.
FORWARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Head:
    """A scikit-learn estimator or Keras model fitted on one layer's features.

    Attributes
    ----------
    id : str
        ``<name>-<12 hex digits>``; the digits are a digest of everything that decides the head:
        estimator, parameters, seed, features, and the data set with its labels and splits.
    name : str
        Ready-made name, or the class names of the estimator.
    kind : {"sklearn", "keras"}
        Which library fitted it.
    estimator : scikit-learn estimator or keras.Model
        Fitted.
    task : {"classification", "regression"}
    classes : tuple
        What the columns of `scores` and `predict_proba` stand for; ``()`` for regression. A
        scikit-learn head has the classes that occur in its training rows, a Keras head all of the
        data set's.
    shape : tuple of int
        Of one row of features, such as ``(14, 14, 512)``.
    params : dict
        Parameters that were asked for.
    seed : int
    metrics : dict
        By split, those that have labelled rows: see `featurestore.heads.metrics`.
    history : dict of str to list of float
        Loss and metrics of each epoch; of a Keras head.
    problems : tuple of str
        What the estimator warned of.
    lineage : dict
        ``features`` (key and whole digests), ``dataset``, ``backbone`` (its spec), ``prefix``,
        ``estimator`` (the fields of its identity), ``versions``, ``created``, ``seconds``.
    store : FeatureStore
        Where its features are, and the head itself where it was saved.
    """

    id: str
    name: str
    kind: Literal["sklearn", "keras"]
    estimator: Any = field(repr=False, compare=False)
    task: Literal["classification", "regression"]
    classes: tuple[Any, ...]
    shape: tuple[int, ...]
    params: dict[str, Any]
    seed: int
    metrics: dict[str, dict[str, Any]] = field(repr=False)
    history: dict[str, list[float]] = field(repr=False)
    problems: tuple[str, ...]
    lineage: dict[str, Any] = field(repr=False)
    store: FeatureStore = field(repr=False, compare=False)

    @property
    def key(self) -> FeatureKey:
        """Key of the features that it was fitted on."""
        origin = self.lineage["features"]
        return FeatureKey(
            origin["model"], origin["ref"], origin["prefix_digest"], origin["dataset_digest"]
        )

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict labels.

        Parameters
        ----------
        X : numpy.ndarray (row, …) or (row, feature)
            Features, in their own shape or flattened.

        Returns
        -------
        numpy.ndarray (row,)
            Classes, or values float64.

        Raises
        ------
        HeadError
            If X has another shape than the features that the head was fitted on.
        """
        if self.task == "regression":
            return self.scores(X)[:, 0]
        if self.kind == "keras":
            return np.asarray(self.classes)[self._probabilities(X).argmax(axis=1)]
        return np.asarray(self.estimator.predict(self._rows(X)))

    def predict_proba(self, X: np.ndarray) -> np.ndarray | None:
        """Predict the probability of each class: float64 (row, class).

        None where the head gives none (a ridge classifier, a linear SVM, a regressor).
        """
        if self.task == "regression":
            return None
        if self.kind == "keras":
            return self._probabilities(X)
        if not hasattr(self.estimator, "predict_proba"):
            return None
        return np.asarray(self.estimator.predict_proba(self._rows(X)), np.float64)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Return what the prediction is decided by: float64 (row, class), (row, 1) for regression.

        Logits of a Keras head and of ``MLPClassifier``; decision values of other scikit-learn
        classifiers that have them, two classes as (0, decision); probabilities of those that have
        none; predicted values of a regressor.
        """
        rows = self._rows(X)
        if self.kind == "keras":
            return self._forward(self._scoring, rows)
        if self.task == "regression":
            return np.asarray(self.estimator.predict(rows), np.float64).reshape(len(rows), -1)
        scores = np.asarray(_decision(self.estimator, rows), np.float64)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return scores

    def save(self, store: FeatureStore) -> None:
        """Keep the head in a store; in the place of the same one, if it is there."""
        import json

        if self.kind == "keras":
            files = {persist.KERAS_FILE: persist.dump_keras(self.estimator)}
        else:
            files = {persist.SKLEARN_FILE: persist.dump_sklearn(self.estimator, self.name)}
        # Apart from the rest: with a thousand classes it is a megabyte, and listings read none.
        confusion = {split: each.get("confusion") for split, each in self.metrics.items()}
        if self.task == "classification":
            files[CONFUSION_FILE] = json.dumps(confusion, separators=(",", ":")).encode()
        store.save_head(self.id, self._meta(), files)

    def _meta(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "task": self.task,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "params": self.params,
            "seed": self.seed,
            "metrics": {
                split: {key: value for key, value in each.items() if key != "confusion"}
                for split, each in self.metrics.items()
            },
            # A loss may be infinite, which JSON has no form for.
            "history": {
                name: [each if np.isfinite(each) else None for each in values]
                for name, values in self.history.items()
            },
            "problems": list(self.problems),
            "lineage": self.lineage,
        }

    @classmethod
    def load(cls, store: FeatureStore, head: str) -> Head:
        """Load a head that predicts exactly as the saved one.

        Parameters
        ----------
        store : FeatureStore
        head : str
            Its id, or the beginning of one that no other id has.

        Raises
        ------
        NotFoundError
            If no id, or more than one, begins so; names the nearest.
        DamagedError
            If a file is missing, altered, or holds what must not be loaded.
        """
        head_id = find(store, head)
        meta = store.head_meta(head_id)
        try:
            return cls._from_meta(store, head_id, meta)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"the document of head {head_id!r} lacks what a head has ({error!r}); "
                "fit it again with `featurestore train`"
            ) from error

    @classmethod
    def _from_meta(cls, store: FeatureStore, head_id: str, meta: dict[str, Any]) -> Head:
        import json

        found = meta.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise StoreFormatError(
                f"head {head_id!r} has format {meta['format']}, and this featurestore reads up to "
                f"{FORMAT}; upgrade it, or fit the head again with `featurestore train`"
            )
        wrong = fault(meta)
        if wrong:
            raise ValueError(wrong)
        file = partial(store.head_file, head_id)
        metrics = meta["metrics"]
        if meta["task"] == "classification":
            for split, confusion in json.loads(file(CONFUSION_FILE)).items():
                metrics[split]["confusion"] = confusion
        if meta["kind"] == "keras":
            estimator = persist.load_keras(file(persist.KERAS_FILE), head_id)
        else:
            estimator = persist.load_sklearn(file(persist.SKLEARN_FILE), head_id)
        return cls(
            id=head_id,
            name=meta["name"],
            kind=meta["kind"],
            estimator=estimator,
            task=meta["task"],
            classes=tuple(meta["classes"]),
            shape=tuple(meta["shape"]),
            params=meta["params"],
            seed=meta["seed"],
            metrics=metrics,
            history=meta["history"],
            problems=tuple(meta["problems"]),
            lineage=meta["lineage"],
            store=store,
        )

    def _rows(self, X: np.ndarray) -> np.ndarray:
        """Bring features to float32 in the shape that the estimator takes."""
        X = np.asarray(X, np.float32)
        size = int(np.prod(self.shape))
        if X.ndim < 2 or X.shape[1:] not in (self.shape, (size,)):
            raise HeadError(
                f"head {self.id!r} takes features {('row', *self.shape)}; found {X.shape}, which "
                f"are not of layer {self.lineage['features']['ref']!r}"
            )
        return X.reshape(len(X), *(self.shape if self.kind == "keras" else (size,)))

    @cached_property
    def _scoring(self) -> Any:
        from featurestore.heads.network import logits_model

        return self.estimator if self.task == "regression" else logits_model(self.estimator)

    def _probabilities(self, X: np.ndarray) -> np.ndarray:
        from featurestore.heads.network import ending

        output = self._forward(self.estimator, self._rows(X))
        if ending(self.estimator) == "softmax":
            return output
        powers = np.exp(output - output.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _forward(self, model: Any, rows: np.ndarray) -> np.ndarray:
        import keras

        if not len(rows):
            return np.zeros((0, len(self.classes) or 1))
        step = max(1, FORWARD_BYTES // (4 * int(np.prod(self.shape))))
        parts = [model(rows[at : at + step], training=False) for at in range(0, len(rows), step)]
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]).astype("f8")


def find(store: FeatureStore, text: str) -> str:
    """Return the id of a head that ``text`` is, or begins; NotFoundError names the nearest."""
    if store.has_head(text):
        return text
    ids = [meta["id"] for meta in store.heads()]
    found = [each for each in ids if each.startswith(text)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} heads begin with" if found else "no head"
    offer = f"such as {found[0]!r} and {found[1]!r}" if found else nearest(text, ids)
    raise NotFoundError(
        f"{what} {text!r} in {store.location}; {offer}; list them with `featurestore heads`"
    )


def _decision(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """Return decision values or logits of a fitted classifier, else its probabilities."""
    if hasattr(estimator, "best_estimator_"):
        return _decision(estimator.best_estimator_, rows)
    if hasattr(estimator, "decision_function"):
        return estimator.decision_function(rows)
    if hasattr(estimator, "steps"):
        for _, step in estimator.steps[:-1]:
            rows = rows if step in (None, "passthrough") else step.transform(rows)
        return _decision(estimator.steps[-1][1], rows)
    if type(estimator).__name__ == "MLPClassifier":
        return _perceptron_logits(estimator, rows)
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(rows)
    # A classifier that tells the class alone, such as NearestCentroid's kin.
    return (np.asarray(estimator.predict(rows))[:, None] == estimator.classes_).astype(np.float64)


def _perceptron_logits(perceptron: Any, rows: np.ndarray) -> np.ndarray:
    """Return what MLPClassifier takes the softmax or sigmoid of."""
    activations: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "identity": lambda x: x,
        "logistic": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
    }
    layers = list(zip(perceptron.coefs_, perceptron.intercepts_, strict=True))
    for kernel, bias in layers[:-1]:
        rows = activations[perceptron.activation](rows @ kernel + bias)
    logits = rows @ layers[-1][0] + layers[-1][1]
    return logits[:, 0] if perceptron.out_activation_ == "logistic" else logits
