"""A fitted head: predictions, metrics, origin, saving and loading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from featurestore.digests import finite_json
from featurestore.errors import DamagedError, HeadError, NotFoundError, nearest, one_line, received
from featurestore.heads import persist
from featurestore.heads.decision import decision
from featurestore.heads.listing import metrics_grid
from featurestore.heads.metrics import without_confusion
from featurestore.heads.schema import FIELDS, validate
from featurestore.store import FeatureKey, FeatureStore, StoreLike
from featurestore.table import cell, show_html

CONFUSION_FILE = "confusion.json"
# Bytes of features that go through a Keras head at once.
FORWARD_BYTES = 64 * 2**20
_TUPLES = ("classes", "shape", "problems", "tags")
# What the document says of the estimator.
_FITTED = ("kind", "task", "classes", "shape")


@dataclass(frozen=True, repr=False)
class Head:
    """An estimator or Keras model fitted on one layer's features.

    Attributes
    ----------
    id : str
        ``<name>-<12 hex digits>``. The digits are a digest of everything that decides the head:
        estimator, parameters, seed, features, and the data set with its labels and splits.
    name : str
        As the user named it; else the ready-made name, or the class names of the estimator.
    kind : {"sklearn", "keras"}
        Which interface the estimator has.
    task : {"classification", "regression"}
    classes : tuple
        The class of each column of `scores` and `predict_proba`; ``()`` for regression. A
        scikit-learn head has the classes of its training rows, a Keras head those of the data set.
    shape : tuple of int
        Shape of one row of features, such as ``(14, 14, 512)``.
    params : dict
        Parameters that the user gave.
    seed : int
    metrics : dict
        By split, if it has labelled rows: see `featurestore.heads.metrics`.
    history : dict of str to list of float
        Loss and metrics of each epoch of a Keras head.
    problems : tuple of str
        Warnings of the estimator; missing rows or classes.
    lineage : dict
        ``features`` (key and full digests), ``dataset``, ``backbone`` (its spec), ``prefix``,
        ``estimator`` (the fields of its identity), ``versions``, ``created``, ``seconds``.
    portable : bool
        Whether a store can keep the estimator. Of one that is not portable, such as XGBoost's, a
        store keeps everything else, and the estimator is fitted again where it is needed.
    best_params : dict
        ``best_params_`` of a search.
    folds : dict or None
        Of a head that was cross-validated: ``folds``, ``seeds``, ``rows`` (held out, on average)
        and ``metrics``, a list for each, with a value for each fold of each seed.
    tags : tuple of str
    note : str
        Of the user; like the name, they can be changed later and do not decide the id.
    store : FeatureStore
        The store of its features, and of the head itself if it was saved.
    """

    id: str
    name: str
    kind: Literal["sklearn", "keras"]
    _fit: Callable[[], Any] = field(repr=False, compare=False)
    task: Literal["classification", "regression"]
    classes: tuple[Any, ...]
    shape: tuple[int, ...]
    params: dict[str, Any]
    seed: int
    metrics: dict[str, dict[str, Any]] = field(repr=False)
    history: dict[str, list[float]] = field(repr=False)
    problems: tuple[str, ...]
    lineage: dict[str, Any] = field(repr=False)
    portable: bool
    best_params: dict[str, Any] = field(repr=False)
    folds: dict[str, Any] | None = field(repr=False)
    tags: tuple[str, ...]
    note: str = field(repr=False)
    store: FeatureStore = field(repr=False, compare=False)

    def __repr__(self) -> str:
        origin = self.lineage["features"]
        where = f"{origin['ref']} of {origin['model']} on {self.lineage['dataset']['name']}"
        name = "r2" if self.task == "regression" else "accuracy"
        found = [f"{split} {name} {cell(each.get(name))}" for split, each in self.metrics.items()]
        return f"Head({', '.join([repr(self.id), where, *found])})"

    def _repr_html_(self) -> str:
        params = f"parameters: {cell(self.params)}" if self.params else ""
        return show_html(repr(self), params, metrics_grid(self.metrics), *self.problems)

    @cached_property
    def estimator(self) -> Any:
        """The fitted scikit-learn estimator or keras.Model.

        Raises
        ------
        HeadError
            If the head is not portable and was loaded without its estimator.
        """
        return self._fit()

    @property
    def key(self) -> FeatureKey:
        """Key of the features that the head was fitted on."""
        origin = self.lineage["features"]
        return FeatureKey(
            origin["model"], origin["ref"], origin["prefix_digest"], origin["dataset_digest"]
        )

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict labels.

        Parameters
        ----------
        X : numpy.ndarray (row, …) or (row, feature)
            Features in their own shape, or flattened.

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
        return self._named(np.asarray(self.estimator.predict(self._rows(X))))

    def predict_proba(self, X: np.ndarray) -> np.ndarray | None:
        """Predict the probability of each class.

        Returns
        -------
        numpy.ndarray of float64 (row, class) or None
            None if the head has no probabilities (a ridge classifier, a linear SVM, a regressor).
        """
        if self.task == "regression":
            return None
        if self.kind == "keras":
            return self._probabilities(X)
        if not hasattr(self.estimator, "predict_proba"):
            return None
        return np.asarray(self.estimator.predict_proba(self._rows(X)), np.float64)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Return the values that predictions are made from.

        Returns
        -------
        numpy.ndarray (row, class), or (row, 1) for regression
            float64. Logits of a Keras head and of ``MLPClassifier``; decision values of other
            scikit-learn classifiers, (0, decision) for two classes; probabilities of classifiers
            without decision values; predicted values of a regressor. If a threshold on these
            decides, they are shifted so that the largest is the predicted class: see
            `featurestore.heads.decision`.
        """
        rows = self._rows(X)
        if self.kind == "keras":
            return self._forward(self._logits_model, rows)
        if self.task == "regression":
            return np.asarray(self.estimator.predict(rows), np.float64).reshape(len(rows), -1)
        scores = np.asarray(decision(self.estimator, rows), np.float64)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return scores

    def document(self) -> dict[str, Any]:
        """Return what ``head.json`` holds, without confusion matrices, as JSON values."""
        document = {name: getattr(self, name) for name in FIELDS}
        history = finite_json(self.history)  # A loss may be infinite.
        metrics = without_confusion(self.metrics)
        return {**document, "id": self.id, "metrics": metrics, "history": history}

    def save(self, store: FeatureStore) -> None:
        """Save the head in a store; of one that is not portable, all but its estimator."""
        files = {}
        if self.kind == "keras":
            files[persist.KERAS_FILE] = persist.dump_keras(self.estimator)
        elif self.portable:
            files[persist.SKLEARN_FILE] = persist.dump_sklearn(self.estimator, self.name)
        if self.task == "classification":
            # In a file of its own, because it may be large.
            confusion = {split: each["confusion"] for split, each in self.metrics.items()}
            files[CONFUSION_FILE] = json.dumps(confusion, separators=(",", ":")).encode()
        store.heads.save(self.id, self.document(), files)

    @classmethod
    def of(cls, head: Head | str, store: StoreLike = None) -> Head:
        """Return a head as it is, or load the one that an id stands for; as :meth:`load`."""
        return head if isinstance(head, Head) else cls.load(head, store)

    @classmethod
    def load(cls, head: str, store: StoreLike = None, estimator: Any = None) -> Head:
        """Load a head. It predicts exactly as the saved one.

        Parameters
        ----------
        head : str
            Its id, a unique beginning of it, or its name.
        store : FeatureStore, path or URL, optional
            By default FEATURESTORE_STORE, else ``./store``.
        estimator : str, class or estimator, optional
            For a head that is not portable: what it was fitted as, since nothing that a store names
            is imported. A class or import path gets the recorded parameters. It is fitted again
            on the stored features when it is first needed, and a warning says so if its metrics
            are not those that are recorded.

        Raises
        ------
        NotFoundError
            If no id begins with it, or several do; the message offers the nearest.
        HeadError
            If ``estimator`` is not what the head was fitted as.
        DamagedError
            If a file is missing or changed, or has content that must not be loaded.
        """
        if not isinstance(head, str):
            raise HeadError(
                f"the head is {received(head)}; expected a Head, or the id of one, such as "
                "'logistic-3fa9' (`featurestore heads` lists them)"
            )
        store = FeatureStore.of(store)
        head_id = find(store, head)
        document = validate(store.heads.get(head_id))
        read = partial(store.heads.read, head_id)
        fields = {name: document[name] for name in FIELDS}
        fields |= {name: tuple(document[name]) for name in _TUPLES}
        wrong = None
        try:
            if fields["task"] == "classification":
                for split, confusion in json.loads(read(CONFUSION_FILE)).items():
                    fields["metrics"][split]["confusion"] = confusion
            if fields["portable"]:
                if fields["kind"] == "keras":
                    fitted = persist.load_keras(read(persist.KERAS_FILE), head_id)
                else:
                    fitted = persist.load_sklearn(read(persist.SKLEARN_FILE), head_id)
                wrong = _misfit(fitted, **{name: fields[name] for name in _FITTED})
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            wrong = f"{type(error).__name__}: {one_line(error)}"
        if wrong:
            raise DamagedError(
                f"the files of head {head_id!r} do not fit its document: {wrong}; fit the head "
                "again with `featurestore train`"
            )
        loaded = cls(id=head_id, _fit=lambda: fitted, store=store, **fields)
        if loaded.portable:
            return loaded
        from featurestore.heads.refit import missing_estimator, refit

        if estimator is not None:
            return refit(loaded, estimator)
        return replace(loaded, _fit=partial(missing_estimator, loaded))

    def _named(self, predicted: np.ndarray) -> np.ndarray:
        """Return labels: an estimator may have been fitted on class numbers."""
        if list(self.estimator.classes_) == list(self.classes):
            return predicted
        return np.asarray(self.classes)[predicted]

    def _rows(self, X: np.ndarray) -> np.ndarray:
        """Return features, float32, in the shape that the estimator takes."""
        X = np.asarray(X, np.float32)
        size = int(np.prod(self.shape))
        if X.ndim < 2 or X.shape[1:] not in (self.shape, (size,)):
            raise HeadError(
                f"found features of shape {X.shape}; head {self.id!r} expects "
                f"{('row', *self.shape)}, those of layer {self.lineage['features']['ref']!r}"
            )
        return X.reshape(len(X), *(self.shape if self.kind == "keras" else (size,)))

    @cached_property
    def _logits_model(self) -> Any:
        from featurestore.heads.network import logits_model

        return self.estimator if self.task == "regression" else logits_model(self.estimator)

    def _probabilities(self, X: np.ndarray) -> np.ndarray:
        from featurestore.heads.network import gives_logits

        output = self._forward(self.estimator, self._rows(X))
        if not gives_logits(self.estimator):
            return output
        powers = np.exp(output - output.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _forward(self, model: Any, rows: np.ndarray) -> np.ndarray:
        import keras

        if not len(rows):
            return np.zeros((0, len(self.classes) or 1))
        parts = [model(part, training=False) for part in forward_parts(rows)]
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]).astype("f8")


def forward_parts(rows: np.ndarray) -> list[np.ndarray]:
    """Return features (row, …) in the parts that a Keras head takes at a time."""
    step = max(1, FORWARD_BYTES // (4 * int(np.prod(rows.shape[1:]))))
    return [rows[at : at + step] for at in range(0, len(rows), step)]


def find(store: FeatureStore, text: str) -> str:
    """Return the only id that begins with ``text``, or whose head has this name.

    NotFoundError offers the nearest.
    """
    found = store.heads.matching(text)
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise NotFoundError(f"{text!r} matches {len(found)} heads: {shown}; give one of these")
    offer = nearest(text, store.heads.keys())
    raise NotFoundError(
        f"no head {text!r} in {store.location}; `featurestore heads` lists them; {offer}"
    )


def _misfit(
    estimator: Any, kind: str, task: str, classes: tuple[Any, ...], shape: tuple[int, ...]
) -> str | None:
    """Return how an estimator contradicts the document of its head; None if it fits."""
    if (task == "regression") == bool(classes):
        return f"its task is {task}, with {len(classes)} classes"
    if kind == "keras":
        found = (*estimator.input_shape[1:], *estimator.output_shape)
        sizes = (*shape, None, len(classes) or 1)
        fits = len(found) == len(sizes) and found[-2:] == sizes[-2:]
        if fits and all(have in (None, size) for have, size in zip(found, sizes, strict=True)):
            return None
        return f"its model maps {estimator.input_shape} to {estimator.output_shape}"
    from sklearn.base import is_classifier, is_regressor

    if not (is_regressor if task == "regression" else is_classifier)(estimator):
        return f"its task is {task}, which {type(estimator).__name__} is not for"
    if classes and list(estimator.classes_) != list(classes):
        return "its estimator has other classes, or another order of them"
    width = getattr(estimator, "n_features_in_", None)
    if width not in (None, math.prod(shape)):
        return f"its estimator takes {width} features, and its shape is {shape}"
    return None
