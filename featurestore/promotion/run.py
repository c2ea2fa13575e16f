"""Promote a head: fuse, prove, fine-tune, save."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import keras

from featurestore.backbone import Backbone
from featurestore.backbone.copying import seeded
from featurestore.dataset.naming import remedy
from featurestore.dataset.source import is_uri
from featurestore.errors import (
    DatasetError,
    FeatureStoreWarning,
    InputError,
    NotFoundError,
    PromotionError,
)
from featurestore.heads import Head
from featurestore.heads.metrics import without_confusion
from featurestore.heads.stale import differences, stale
from featurestore.listening import OnEvent, receiver
from featurestore.promotion.carried import carries_classes
from featurestore.promotion.evaluation import Evaluation
from featurestore.promotion.events import PromotionStageStarted
from featurestore.promotion.exportable import fixed_images
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import unfrozen_layers
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.origin import load_backbone, load_data
from featurestore.promotion.parity import Parity
from featurestore.promotion.proof import prove
from featurestore.promotion.report import headline, splits_grid
from featurestore.promotion.saved import (
    check_target,
    load_model,
    read_seen,
    save_model,
    weights_digest,
)
from featurestore.promotion.seen import Seen
from featurestore.promotion.tune import tune
from featurestore.table import plural, show_html
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.store import StoreLike

FORMAT = 1
Images = Literal["any", "fixed"]


@dataclass(frozen=True, repr=False)
class Promotion:
    """A promoted model, with the proof and the measurements behind it.

    Attributes
    ----------
    model : keras.Model
        A plain Keras model, from uint8 RGB images (batch, height, width, channel=3) to class
        probabilities (batch, class), or predicted values (batch, 1). Train, nest, export or save
        it like any other: its last layer, ``classes``, carries the class names. :meth:`save` also
        writes the provenance.
    parity : Parity
        Of the fused model with the cached head, before anything was trained.
    before, after : dict of str to dict
        Metrics on each held-out split before and after fine-tuning, measured on what
        :attr:`measured_on` says. ``images_were`` says what the model did with its images: head and
        epoch were ``selected on`` validation images, test images were ``held out``. Equal if
        nothing was trained, or no epoch was better.
    history : list of dict
        Loss and metrics of each epoch.
    fine_tuning : dict
        Its options, ``rates`` (of the head and each block), ``start`` (validation loss and
        accuracy before the first epoch), ``kept_epoch`` and ``verdict``, the outcome in one
        line. Empty if nothing was trained.
    metadata : dict
        The provenance, which :meth:`save` writes beside the model. ``threshold`` has the ``class``
        that the head's threshold decides for, its ``value`` and what it is ``of``; else it is
        empty. The model's probabilities are shifted so that 0.5 stands for it.
    seen : Seen
        The samples that the model was trained and selected on.
    stored : dict of str to dict
        If the cached features are of lower precision than float32: their ``precision``, and the
        ``metrics`` of the head on them by held-out split. Empty otherwise.
    """

    model: keras.Model
    parity: Parity
    before: dict[str, Any]
    after: dict[str, Any]
    history: list[dict[str, float]]
    fine_tuning: dict[str, Any]
    metadata: dict[str, Any] = field(repr=False)
    seen: Seen = field(repr=False)
    _weights: str = field(repr=False)
    stored: dict[str, Any] = field(default_factory=dict)

    @property
    def measured_on(self) -> dict[str, str]:
        """What ``before`` and ``after`` were measured on: ``stored features``, or ``images``.

        The metrics of the head, which it measured on stored features, are those of the model that
        is proven to predict the same. A model in another precision than these features, or whose
        probabilities are shifted by a threshold, is evaluated on images, as after fine-tuning.
        """
        evaluated = self.stored or self.metadata["threshold"]
        before = "images" if evaluated else "stored features"
        tuned = self.fine_tuning.get("kept_epoch")
        return {"before": before, "after": "images" if tuned else before}

    def save(self, path: str | Path, images: Images = "any") -> None:
        """Write the model, as it is now, with its metadata as one ``.keras`` file.

        If it was trained further since promotion, the file records this, and leaves out the figures
        of its earlier weights.

        Parameters
        ----------
        path : path-like
            Must end in ``.keras``.
        images : {"any", "fixed"}
            ``fixed`` leaves the resize out: the model takes images of the backbone's input size
            only, and exports to LiteRT and ONNX. See :func:`fixed_images`.

        Raises
        ------
        InputError
            If the path does not end in ``.keras`` or cannot be written to.
        ParityError
            If the model for images of one size differs from the other.
        """
        if images not in get_args(Images):
            raise InputError(f"images={images!r}, expected one of {', '.join(get_args(Images))}")
        path = check_target(path)
        further = weights_digest(self.model) != self._weights
        metadata = {**self.metadata, "images": images}
        if not further:
            metadata = {**metadata, **self.report}
            metadata["before"] = without_confusion(self.before)
            metadata["after"] = without_confusion(self.after)
        seen = replace(self.seen, complete=self.seen.complete and not further)
        model = self.model if images == "any" else fixed_images(self.model)
        save_model(model, path, metadata, seen)

    def __repr__(self) -> str:
        tuned = f", {self.fine_tuning['verdict']}" if self.fine_tuning else ""
        found = [f"{split} {headline(each)}" for split, each in self.after.items()]
        rows = f"equal to the head on {self.parity.rows:,} rows"
        return f"Promotion({', '.join([repr(self.metadata['head']), rows, *found])}{tuned})"

    def _repr_html_(self) -> str:
        tuned = bool(self.fine_tuning.get("kept_epoch"))
        measures = splits_grid({"before": self.before, "after": self.after}, tuned)
        return show_html(repr(self), *([measures] if measures.rows else []))

    @property
    def report(self) -> dict[str, Any]:
        """Proof, threshold, metrics before and after, fine-tuning and its history, for JSON."""
        return {
            "parity": self.parity.to_dict(),
            "stored": self.stored,
            "threshold": self.metadata["threshold"],
            "measured_on": self.measured_on,
            "before": self.before,
            "after": self.after,
            "fine_tuning": self.fine_tuning,
            "history": self.history,
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
        Receives :class:`PromotionStageStarted`, :class:`Proved`, and the events of fine-tuning.
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
    'kept epoch 3 of 3: val_loss 0.214 (0.251 before)'
    """
    tuning = FineTuning.of(options)
    head = Head.of(head, store)
    on_event = receiver(on_event)
    data = load_data(head.store, head) if data is None else head.store.datasets.open(data)
    _check_data(head, data, tuning)
    if backbone is None:
        on_event(PromotionStageStarted(f"load {head.key.model}"))
        backbone = load_backbone(head)
    backbone = Backbone.of(backbone)
    seen = _seen(head, backbone, data, tuning, selected_on)
    _warn_if_stale(head)
    if tuning.passes:
        _check_images(data)
    # Seeds new layers and dropout, and leaves the process's own generator alone.
    with seeded(tuning.seed):
        on_event(PromotionStageStarted(f"fuse {head.id} with {backbone.name} at {head.key.ref}"))
        fused = fuse(head, backbone)
        trained = unfrozen_layers(fused, tuning)
        metadata = _metadata(head, fused, data)
        parity = prove(head, backbone, fused, data, metadata, on_event)

        def evaluated() -> dict[str, Any]:
            on_event(PromotionStageStarted("evaluate the model on images"))
            promoted = replace(load_model(fused.model), seen=seen)
            return Evaluation.of(promoted, data, held_out=True).metrics

        lower = backbone.computing.precision != "float32"
        # What the head measured holds for the model, unless the model gives other probabilities.
        measured = evaluated() if lower or fused.threshold else _metrics(head, seen)
        before = after = measured
        history: list[dict[str, float]] = []
        record: dict[str, Any] = {}
        if tuning.passes:
            computing = backbone.in_float32()
            tuned = tune(head, computing, fused, data, trained, tuning, before, evaluated, on_event)
            history, record = tuned.history, tuned.record
            after = tuned.after if tuned.kept_epoch else before
        # A new model around the same layers leaves the optimizer behind.
        model = keras.Model(fused.model.inputs[0], fused.model.outputs[0], name="promoted")
    weights = weights_digest(model)
    stored = _on_stored(head, backbone, before)
    return Promotion(model, parity, before, after, history, record, metadata, seen, weights, stored)


def _on_stored(head: Head, backbone: Backbone, before: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a head on features of lower precision; empty for float32."""
    precision = backbone.computing.precision
    if precision == "float32":
        return {}
    found = {split: each for split, each in head.metrics.items() if split in before}
    return {"precision": precision, "metrics": found}


def _metrics(head: Head, seen: Seen) -> dict[str, Any]:
    """Return what a head measured on its held-out rows; on the training rows without others."""
    held_out = [split for split in head.metrics if split != "train"] or ["train"]
    return {
        split: {"images_were": seen.images_were(split), **head.metrics[split]} for split in held_out
    }


def _check_images(data: Dataset) -> None:
    """Raise DatasetError if image files are gone, before a proof that takes minutes."""
    paths = [data.paths[row] for row in data.rows(labelled=True, views=False)]
    files = [path for path in paths if path is not None and not is_uri(path)]
    missing = [path for path in files if not os.path.exists(path)]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of {plural(len(paths), 'image')} of data set {data.name!r} to "
            f"fine-tune on are gone, such as {missing[0]!r}",
            remedy=remedy(data.source, data.name, dict(data.options)),
        )


def _check_data(head: Head, data: Dataset, tuning: FineTuning) -> None:
    origin = head.provenance["dataset"]
    if data.manifest_digest != origin["manifest_digest"]:
        try:
            former = head.store.datasets.load(origin["name"], origin["manifest_digest"])
            differ = differences(former, data)
        except NotFoundError:
            differ = "unknown, because the store no longer has that state"
        raise PromotionError(
            f"{head.id} was fitted on another state of data set {origin['name']!r} than "
            f"{data.name!r} is: {differ}; leave out data=… to promote it with the samples, labels "
            "and splits that it was fitted on, or fit a head on these with fit_head"
        )
    if tuning.passes and list(head.classes) != list(data.classes):
        unknown = [repr(each) for each in data.classes if each not in head.classes]
        raise PromotionError(
            f"{head.id} knows {len(head.classes)} classes, and {data.name} has "
            f"{len(data.classes)}; without training rows: {', '.join(unknown[:5])}. To fine-tune, "
            "split again with `featurestore scan`, then `featurestore train`"
        )


def _seen(
    head: Head,
    backbone: Backbone,
    data: Dataset,
    tuning: FineTuning,
    selected_on: Collection[str],
) -> Seen:
    """Return the samples that the model sees: the head's rows, and those of fine-tuning."""
    chosen_by = [selected_on] if isinstance(selected_on, str) else [*selected_on]
    if tuning.passes or (head.kind == "keras" and head.params.get("early_stopping")):
        chosen_by.append("val")  # The validation rows chose the epoch.
    earlier = None
    if "path" in backbone.spec:
        with suppress(InputError):  # not a promoted model
            earlier = read_seen(backbone.spec["path"])
    if earlier is None and carries_classes(backbone.operations):
        earlier = Seen.unknown()  # a promoted model without its record
    return Seen.by(data, chosen_by, earlier)


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


def _metadata(head: Head, fused: Fused, data: Dataset) -> dict[str, Any]:
    threshold = {}
    if fused.threshold is not None:
        threshold = {
            "class": head.classes[fused.threshold.positive],
            "value": fused.threshold.value,
            "of": fused.threshold.response,
        }
    return {
        "featurestore_model": FORMAT,
        "task": head.task,
        "head": head.id,
        "features": str(head.key),
        "backbone": head.provenance["backbone"],
        "threshold": threshold,
        "dataset": {"name": data.name, "manifest": data.manifest_digest},
        "versions": versions(),
    }
