"""A fitted head: its document, predictions, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
)

from featurestore.digests import finite_json
from featurestore.errors import DamagedError, HeadError, received
from featurestore.heads import persist
from featurestore.heads.decision import decision_values
from featurestore.heads.identity import foreign
from featurestore.heads.listing import metrics_grid
from featurestore.heads.metrics import without_confusion
from featurestore.settings import first_mistake
from featurestore.store import FeatureKey, FeatureStore, StoreLike
from featurestore.store.heads import Provenance
from featurestore.table import cell, show_html

CONFUSION_FILE = "confusion.json"
# Bytes of features that go through a Keras head at once.
FORWARD_BYTES = 64 * 2**20


class _Provenance(Provenance):
    estimator: dict[str, Any]
    backbone: dict[str, Any] | None = None
    created: str
    seconds: float


class _Folds(BaseModel):
    model_config = ConfigDict(strict=True)

    folds: int
    seeds: int
    rows: float
    metrics: dict[str, list[float | None]]


def _checked(model: type[BaseModel]) -> Any:
    """Return an annotation of a mapping that has at least the fields of a model."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        model.model_validate(value)
        return value

    return Annotated[dict[str, Any], AfterValidator(check)]


class Head(BaseModel):
    """An estimator or Keras model fitted on one layer's features.

    Its fields are the document that the store keeps of it, ``head.json``.

    Attributes
    ----------
    id : str
        ``<estimator>-<12 hex digits>``. The digits are a digest of everything that decides the
        head: estimator, parameters, seed, features, and the data set with its labels and splits.
    estimator : str
        The ready-made name, or the class names of the estimator, joined by ``+``.
    label : str or None
        A name that the user gave it.
    kind : {"sklearn", "keras"}
        Which interface the estimator has.
    task : {"classification", "regression"}
    classes : tuple
        The class of each column of `decision_function` and `predict_proba`; ``()`` for regression.
        A scikit-learn head has the classes of its training rows, a Keras head those of the data
        set.
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
    provenance : dict
        ``features`` (key and full digests), ``dataset``, ``backbone`` (its spec), ``prefix``,
        ``estimator`` (the fields of its identity), ``versions``, ``created``, ``seconds``.
    best_params : dict
        ``best_params_`` of a search.
    folds : dict or None
        Of a head that was cross-validated: ``folds``, ``seeds``, ``rows`` (held out, on average)
        and ``metrics``, a list for each, with a value for each fold of each seed.
    tags : tuple of str
    note : str
        Of the user. Label, tags and note can be changed later and do not decide the id.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    id: str
    estimator: str
    label: str | None = None
    kind: Literal["sklearn", "keras"]
    task: Literal["classification", "regression"]
    classes: Annotated[tuple[str | int | bool, ...], Field(strict=False)]
    shape: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    params: dict[str, Any]
    seed: int
    metrics: dict[str, dict[str, int | float | dict[str, Any] | None]]
    history: dict[str, list[float | None]]
    problems: Annotated[tuple[str, ...], Field(strict=False)]
    provenance: _checked(_Provenance)  # type: ignore[valid-type]
    best_params: dict[str, Any] = {}
    folds: _checked(_Folds) | None = None  # type: ignore[valid-type]
    tags: Annotated[tuple[str, ...], Field(strict=False)] = ()
    note: str = ""

    _store: FeatureStore = PrivateAttr()
    _trusted: Collection[str] = PrivateAttr(())
    _fitted: Any = PrivateAttr(None)

    @classmethod
    def of_document(cls, document: Mapping[str, Any], store: FeatureStore) -> Self:
        """Return a stored head, without reading its files; DamagedError for an invalid document."""
        try:
            head = cls.model_validate(document)
        except ValidationError as error:
            raise DamagedError(
                f"the document of head {document['id']!r} is not valid: {first_mistake(error)}",
                remedy="fit the head again with `featurestore train`",
            ) from None
        head._store = store
        return head

    @classmethod
    def of_fit(cls, fitted: Any, store: FeatureStore, **fields: Any) -> Self:
        """Return the head of a fitted estimator or keras.Model."""
        head = cls(**fields)
        head._store, head._fitted = store, fitted
        return head

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.document() == other.document()

    def __repr__(self) -> str:
        origin = self.provenance["features"]
        where = f"{origin['ref']} of {origin['model']} on {self.provenance['dataset']['name']}"
        metric = "r2" if self.task == "regression" else "accuracy"
        values = [
            f"{split} {metric} {cell(metrics.get(metric))}"
            for split, metrics in self.metrics.items()
        ]
        return f"Head({', '.join([repr(self.id), where, *values])})"

    def _repr_html_(self) -> str:
        params = f"parameters: {cell(self.params)}" if self.params else ""
        return show_html(repr(self), params, metrics_grid(self.metrics), *self.problems)

    @property
    def store(self) -> FeatureStore:
        """The store of its features, and of the head itself if it was saved."""
        return self._store

    @property
    def fitted(self) -> Any:
        """The fitted scikit-learn estimator or keras.Model; of a loaded head, read when first used.

        Raises
        ------
        HeadError
            If it has types of other libraries that the user did not trust: see `load`.
        DamagedError
            If its file is missing or changed, or has content that must not be loaded.
        """
        if self._fitted is None:
            read, classes = self._store.heads.read, list(self.classes)
            if self.kind == "keras":
                fitted = persist.load_keras(read(self.id, persist.KERAS_FILE), self.id)
                fits = fitted.output_shape[-1] == (len(classes) or 1)
            else:
                data = read(self.id, persist.SKLEARN_FILE)
                fitted = persist.load_sklearn(data, self.id, self._trusted)
                # Classifiers of other libraries may have been fitted on class numbers.
                labels = list(getattr(fitted, "classes_", ()))
                fits = labels in (classes, list(range(len(classes))))
            if not fits:
                raise _misfit(self.id, "its estimator has other classes, or another order of them")
            self._fitted = fitted
        return self._fitted

    @property
    def foreign(self) -> list[str]:
        """Import paths of what is not scikit-learn's in an estimator; empty for a Keras head."""
        return list(foreign(self.provenance["estimator"])) if self.kind == "sklearn" else []

    @property
    def key(self) -> FeatureKey:
        """Key of the features that the head was fitted on."""
        origin = self.provenance["features"]
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
            return self.decision_function(X)[:, 0]
        if self.kind == "keras":
            return np.asarray(self.classes)[self._probabilities(X).argmax(axis=1)]
        predicted = np.asarray(self.fitted.predict(self._rows(X)))
        if list(self.fitted.classes_) == list(self.classes):
            return predicted
        return np.asarray(self.classes)[predicted]  # It was fitted on class numbers.

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
        if not hasattr(self.fitted, "predict_proba"):
            return None
        return np.asarray(self.fitted.predict_proba(self._rows(X)), np.float64)

    def decision_function(self, X: np.ndarray) -> np.ndarray:
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
            return np.asarray(self.fitted.predict(rows), np.float64).reshape(len(rows), -1)
        scores = np.asarray(decision_values(self.fitted, rows), np.float64)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return scores

    def document(self) -> dict[str, Any]:
        """Return what ``head.json`` holds, without confusion matrices, as JSON values."""
        metrics = without_confusion(self.metrics)
        history = finite_json(self.history)  # A loss may be infinite.
        return {**self.model_dump(mode="json"), "metrics": metrics, "history": history}

    def changed(self, **fields: Any) -> Self:
        """Return the head with other values of some fields."""
        return self.model_copy(update=fields)

    def of_last_step(self, shape: tuple[int, ...]) -> Self:
        """Return the head of the last step of its pipeline, on rows of this shape."""
        head = self.changed(shape=shape)
        head._fitted = self.fitted[-1]
        return head

    def save(self, store: FeatureStore) -> None:
        """Save the head in a store.

        Raises
        ------
        HeadError
            If the estimator cannot be stored without pickle.
        """
        if self.kind == "keras":
            files = {persist.KERAS_FILE: persist.dump_keras(self.fitted)}
        else:
            files = {persist.SKLEARN_FILE: persist.dump_sklearn(self.fitted, self.estimator)}
        if self.task == "classification":
            # In a file of its own, because it may be large.
            confusion = {split: metrics["confusion"] for split, metrics in self.metrics.items()}
            files[CONFUSION_FILE] = json.dumps(confusion, separators=(",", ":")).encode()
        store.heads.save(self.id, self.document(), files)

    @classmethod
    def load(cls, head: str, store: StoreLike = None, *, trusted: Collection[str] = ()) -> Head:
        """Load a head. It predicts exactly as the saved one.

        Parameters
        ----------
        head : str
            Its id, a unique beginning of it, or its label.
        store : FeatureStore, path or URL, optional
            By default FEATURESTORE_STORE, else ``./store``.
        trusted : collection of str
            For an estimator of another library, or of your own: the types that its file may hold,
            such as ``"xgboost.sklearn.XGBClassifier"``, or packages, such as ``"xgboost"``. To load
            them runs their code, so that nothing that only the store names is trusted.

        Raises
        ------
        NotFoundError
            If no id begins with it, or several do; the message offers the nearest.
        DamagedError
            If its document or its confusion matrices are missing or changed.
        """
        if not isinstance(head, str):
            raise HeadError(
                f"the head is {received(head)}",
                "a Head, or the id of one, such as 'logistic-3fa9'",
                "list them with `featurestore heads`",
            )
        store = FeatureStore.of(store)
        head_id = store.heads.find(head)
        loaded = cls.of_document(store.heads.get(head_id), store)
        loaded._trusted = trusted
        if loaded.task == "classification":
            try:
                confusion = json.loads(store.heads.read(head_id, CONFUSION_FILE))
                for split, metrics in loaded.metrics.items():
                    count = len(confusion[split]["classes"])
                    np.asarray(confusion[split]["matrix"], np.int64).reshape(count, count)
                    metrics["confusion"] = confusion[split]
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise _misfit(head_id, f"{CONFUSION_FILE} is invalid") from error
        return loaded

    def _rows(self, X: np.ndarray) -> np.ndarray:
        """Return features, float32, in the shape that the estimator takes."""
        X = np.asarray(X, np.float32)
        size = int(np.prod(self.shape))
        if X.ndim < 2 or X.shape[1:] not in (self.shape, (size,)):
            raise HeadError(
                f"features of shape {X.shape}",
                f"{('row', *self.shape)}, those of layer {self.key.ref!r}, for head {self.id!r}",
            )
        return X.reshape(len(X), *(self.shape if self.kind == "keras" else (size,)))

    @cached_property
    def _logits_model(self) -> Any:
        from featurestore.heads.network import logits_model

        return self.fitted if self.task == "regression" else logits_model(self.fitted)

    def _probabilities(self, X: np.ndarray) -> np.ndarray:
        from scipy.special import softmax

        from featurestore.heads.network import gives_logits

        output = self._forward(self.fitted, self._rows(X))
        return softmax(output, axis=1) if gives_logits(self.fitted) else output

    def _forward(self, model: Any, rows: np.ndarray) -> np.ndarray:
        import keras

        step = max(1, FORWARD_BYTES // (4 * int(np.prod(rows.shape[1:]))))
        chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
        outputs = [keras.ops.convert_to_numpy(model(X, training=False)) for X in chunks]
        return np.concatenate([np.zeros((0, len(self.classes) or 1)), *outputs])


def _misfit(head_id: str, reason: str) -> DamagedError:
    return DamagedError(
        f"the files of head {head_id!r} do not fit its document: {reason}",
        remedy="fit the head again with `featurestore train`",
    )
