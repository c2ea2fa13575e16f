"""Promote a head: fuse, prove, fine-tune, save."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import Backbone
from featurestore.backbone.copying import seeded
from featurestore.errors import FeatureStoreWarning, PromotionError
from featurestore.heads import Head
from featurestore.heads.metrics import without_confusion
from featurestore.heads.stale import differences, stale
from featurestore.listening import OnEvent, receiver
from featurestore.promotion.class_names import has_class_names
from featurestore.promotion.evaluation import Evaluation
from featurestore.promotion.events import PromotionStageStarted
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import unfrozen_layers
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.origin import load_backbone, load_data
from featurestore.promotion.parity import Parity
from featurestore.promotion.proof import prove
from featurestore.promotion.report import headline, splits_grid
from featurestore.promotion.saved import load_model, save_model, weights_digest
from featurestore.promotion.training_record import TrainingRecord
from featurestore.promotion.tune import tune
from featurestore.table import show_html
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.store import StoreLike


@dataclass(frozen=True, repr=False)
class Promotion:
    """A promoted model, with the proof and the measurements behind it.

    Attributes
    ----------
    model : keras.Model or OnnxModel
        A plain Keras model, from uint8 RGB images (batch, height, width, channel=3) to class
        probabilities (batch, class), or predicted values (batch, 1). Train, nest, export or save
        it like any other: its last layer, ``classes``, carries the class names. An ONNX model if
        the backbone is an ONNX file. :meth:`save` also writes the provenance.
    parity : Parity
        Of the fused model with the cached head, before anything was trained.
    before, after : dict of str to dict
        Metrics on each held-out split before and after fine-tuning. ``images_were`` says what the
        model did with its images: head and epoch were ``selected on`` validation images, test
        images were ``held out``. Equal if nothing was trained, or no epoch was better.
    history : list of dict
        Loss and metrics of each epoch.
    fine_tuning : dict
        Its options, ``kept_epoch``, and ``verdict``, the outcome in one line. Empty if nothing was
        trained.
    notes : list of str
        What to know of the metrics: what they were measured on, and what a threshold or features
        of lower precision mean for them.
    metadata : dict
        The provenance, which :meth:`save` writes beside the model.
    training_record : TrainingRecord
        The samples that the model was trained and selected on.
    """

    model: Any
    parity: Parity
    before: dict[str, Any]
    after: dict[str, Any]
    history: list[dict[str, float]]
    fine_tuning: dict[str, Any]
    notes: list[str]
    metadata: dict[str, Any] = field(repr=False)
    training_record: TrainingRecord = field(repr=False)
    _weights: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the model, as it is now, with its metadata as one ``.keras`` file.

        If it was trained further since promotion, the file records this, and leaves out the figures
        of its earlier weights.

        Raises
        ------
        InputError
            If the path does not end in ``.keras`` or cannot be written to.
        """
        metadata, record = self.metadata, self.training_record
        if weights_digest(self.model) != self._weights:
            record = replace(record, complete=False)
        else:
            metadata = {**metadata, **self.report}
            metadata["before"] = without_confusion(self.before)
            metadata["after"] = without_confusion(self.after)
        save_model(self.model, path, {**metadata, "training_record": record.to_dict()})

    def __repr__(self) -> str:
        tuned = f", {self.fine_tuning['verdict']}" if self.fine_tuning else ""
        measured = [f"{split} {headline(metrics)}" for split, metrics in self.after.items()]
        rows = f"compared with the head on {self.parity.rows:,} rows"
        return f"Promotion({', '.join([repr(self.metadata['head']), rows, *measured])}{tuned})"

    def _repr_html_(self) -> str:
        tuned = bool(self.fine_tuning.get("kept_epoch"))
        measures = splits_grid({"before": self.before, "after": self.after}, tuned)
        return show_html(repr(self), *([measures] if measures.rows else []))

    @property
    def report(self) -> dict[str, Any]:
        """Proof, metrics before and after, fine-tuning, its history and notes, for JSON."""
        return {
            "parity": asdict(self.parity),
            "before": self.before,
            "after": self.after,
            "fine_tuning": self.fine_tuning,
            "history": self.history,
            "notes": self.notes,
        }


def promote(
    head: Head | str,
    backbone: Backbone | str | os.PathLike[str] | keras.Model | None = None,
    *,
    data: Dataset | str | os.PathLike[str] | None = None,
    store: StoreLike = None,
    selected_on: Collection[str] = ("val",),
    on_event: OnEvent | None = None,
    **options: Any,
) -> Promotion:
    """Fuse a head onto its backbone, prove that the model predicts the same, and fine-tune it.

    Parameters
    ----------
    head : Head or str
        Fitted on cached features; or the id of one, or the beginning of its id.
    backbone : Backbone, str, path or keras.Model, optional
        The model that these features came from: see :meth:`Backbone.of`. By default the one that
        the head records.
    data : Dataset, str or path, optional
        The samples that the head was fitted on, with their images, labels and splits. By default
        those of its store.
    store : FeatureStore, path or URL, optional
        Of a head that is given by its id. By default FEATURESTORE_STORE, else ``./store``.
    selected_on : collection of str
        Splits whose rows chose the head among others; their figures then say so.
    on_event : callable, optional
        Receives :class:`PromotionStageStarted`, :class:`Proved`, and :class:`TuningEpochEnded`.
    **options
        Fields of :class:`FineTuning`, such as ``unfreeze`` and ``epochs``.

    Returns
    -------
    Promotion
        ``model`` is a plain Keras model that carries its class names, ``save(path)`` writes it with
        its provenance, ``report`` has the proof and the metrics.

    Raises
    ------
    InputError
        If an option is unknown or out of range.
    PromotionError
        If the head has no Keras form, the backbone is not that of the head, or the data have other
        samples, labels or splits.
    ParityError
        If the fused model, or its saved file, disagrees with the cached head.

    Warns
    -----
    FeatureStoreWarning
        If the head is stale: the labels, splits or rows of its data set have changed since.

    Examples
    --------
    >>> promotion = promote("logistic-3fa9", unfreeze="block5")  # doctest: +SKIP
    >>> promotion.fine_tuning["verdict"]  # doctest: +SKIP
    'kept epoch 3 of 3: val accuracy 0.946 (0.942 before), val log loss 0.214 (0.251 before)'
    """
    tuning = FineTuning.of(options)
    head = head if isinstance(head, Head) else Head.load(head, store)
    on_event = receiver(on_event)
    data = load_data(head) if data is None else head.store.datasets.open(data)
    _check_data(head, data, tuning)
    if backbone is None:
        on_event(PromotionStageStarted(f"load {head.key.model}"))
        backbone = load_backbone(head)
    backbone = Backbone.of(backbone)
    if backbone.is_onnx and tuning.passes:
        raise PromotionError(
            f"the backbone of {head.id} is an ONNX file, which Keras cannot train",
            "a promotion without fine-tuning",
            "leave out --unfreeze and --epochs",
        )
    record = _training_record(head, backbone, data, tuning, selected_on)
    _warn_if_stale(head)
    # Seeds new layers and dropout, and leaves the process's own generator alone.
    with seeded(tuning.seed):
        on_event(PromotionStageStarted(f"fuse {head.id} with {backbone.name} at {head.key.ref}"))
        fused = fuse(head, backbone)
        trained = [] if backbone.is_onnx else unfrozen_layers(fused, tuning)
        metadata = _metadata(head, data)
        parity = prove(head, backbone, fused, data, metadata, on_event)

        def evaluate() -> dict[str, Any]:
            on_event(PromotionStageStarted("evaluate the model on images"))
            promoted = replace(load_model(fused.model), training_record=record)
            return Evaluation.of(promoted, data, held_out=True).metrics

        before = _metrics(head, record)
        on_images = _differs(fused, backbone, parity, before)
        before = after = evaluate() if on_images else before
        history: list[dict[str, float]] = []
        fine_tuning: dict[str, Any] = {}
        if tuning.passes:
            computing = backbone.in_float32()
            tuned = tune(head, computing, fused, data, trained, tuning, before, evaluate, on_event)
            history, after = tuned.history, tuned.after if tuned.kept_epoch else before
            fine_tuning = {**tuning.model_dump(), "epochs": tuning.passes}
            fine_tuning |= {"kept_epoch": tuned.kept_epoch, "verdict": tuned.verdict}
        model = fused.model
        if not backbone.is_onnx:
            # A new model around the same layers leaves the optimizer behind.
            model = keras.Model(model.inputs[0], model.outputs[0], name="promoted")
    notes = _notes(head, backbone, fused, on_images, bool(fine_tuning.get("kept_epoch")))
    weights = weights_digest(model)
    return Promotion(
        model, parity, before, after, history, fine_tuning, notes, metadata, record, weights
    )


def _notes(head: Head, backbone: Backbone, fused: Fused, on_images: bool, tuned: bool) -> list[str]:
    """Return what must be known of the metrics, each in one line."""
    before = "images" if on_images else "stored features"
    if tuned and not on_images:
        notes = [f"measured on {before} before fine-tuning, on images after it"]
    else:
        notes = [f"measured on {before}" + ("" if on_images else ", by the head")]
    precision, threshold = backbone.computing.precision, fused.threshold
    if precision != "float32":
        notes.append(
            f"the head was fitted on {precision} features; the model computes in float32, and so "
            "do its metrics"
        )
    if threshold is not None:
        what = "probability" if threshold.response == "predict_proba" else "decision value"
        notes.append(
            f"the head predicts {head.classes[threshold.positive]} from a {what} of "
            f"{threshold.value:.3g}; the model's probabilities are shifted so that this is 0.5, "
            "and so is its log loss"
        )
    return notes


def _differs(
    fused: Fused, backbone: Backbone, parity: Parity, measured: dict[str, dict[str, Any]]
) -> bool:
    """Whether the model may have other metrics than those that the head measured."""
    if fused.threshold is not None or backbone.computing.precision != "float32":
        return True
    if parity.agreement is not None:
        return parity.agreement < 1
    # Rounding may move a value by a share of the head's own error.
    return parity.max_abs_diff > min(metrics["rmse"] for metrics in measured.values()) / 20


def _metrics(head: Head, record: TrainingRecord) -> dict[str, Any]:
    """Return what a head measured on its held-out rows; on the training rows without others."""
    held_out = [split for split in head.metrics if split != "train"] or ["train"]
    return {
        split: {"images_were": record.images_were(split), **head.metrics[split]}
        for split in held_out
    }


def _check_data(head: Head, data: Dataset, tuning: FineTuning) -> None:
    origin = head.provenance["dataset"]
    if data.manifest_digest != origin["manifest_digest"]:
        former = head.store.datasets.load(origin["name"], origin["manifest_digest"])
        raise PromotionError(
            f"{head.id} was fitted on another state of data set {origin['name']!r} than "
            f"{data.name!r} is: {differences(former, data)}; leave out data=… to promote it "
            "with the samples, labels and splits that it was fitted on, or fit a head on these "
            "with fit_head"
        )
    if tuning.passes and list(head.classes) != list(data.classes):
        untrained = [repr(label) for label in data.classes if label not in head.classes]
        raise PromotionError(
            f"{head.id} knows {len(head.classes)} classes, and {data.name} has "
            f"{len(data.classes)}; without training rows: {', '.join(untrained[:5])}. To "
            "fine-tune, split again with `featurestore scan`, then `featurestore train`"
        )


def _training_record(
    head: Head,
    backbone: Backbone,
    data: Dataset,
    tuning: FineTuning,
    selected_on: Collection[str],
) -> TrainingRecord:
    """Return the samples that the model sees: the head's rows, and those of fine-tuning."""
    chosen_by = [selected_on] if isinstance(selected_on, str) else [*selected_on]
    if tuning.passes or (head.kind == "keras" and head.params.get("early_stopping")):
        chosen_by.append("val")  # The validation rows chose the epoch.
    # A backbone that is a promoted model was trained on images of its own, and a network that is
    # not trained here was trained elsewhere.
    elsewhere = head.kind == "keras" and not head.history
    complete = not (elsewhere or has_class_names(backbone.operations))
    return TrainingRecord.of(data, chosen_by, complete)


def _warn_if_stale(head: Head) -> None:
    (changed,) = stale(head.store, [head])
    if changed:
        name = head.provenance["dataset"]["name"]
        warnings.warn(
            f"{head.id} is stale: it was fitted on another state of {name}: {changed}; "
            "`featurestore train` fits a head on the current one",
            FeatureStoreWarning,
            stacklevel=3,
        )


def _metadata(head: Head, data: Dataset) -> dict[str, Any]:
    return {
        "task": head.task,
        "head": head.id,
        "features": str(head.key),
        "backbone": head.provenance["backbone"],
        "dataset": {"name": data.name, "manifest": data.manifest_digest},
        "versions": versions(),
    }
