"""Promotion: fuse, prove, fine-tune, and save what was proven."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef, unfrozen
from featurestore.backbone.naming import RESERVED
from featurestore.backbone.seeding import seeded
from featurestore.errors import (
    ActivationError,
    FeatureStoreWarning,
    NotFoundError,
    PromotionError,
)
from featurestore.extraction import extract
from featurestore.heads.stale import stale
from featurestore.promotion.evaluation import measure
from featurestore.promotion.events import OnEvent, TuningEpochEnded, TuningStarted
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.parity import Parity
from featurestore.promotion.proof import prove
from featurestore.promotion.saved import find_seen, save_model, weights_digest
from featurestore.promotion.seen import Seen
from featurestore.promotion.tune import (
    Tuned,
    boundary,
    fine_tune,
    freeze,
    labelled_images,
    rates,
    verdict,
)

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.features import Features
    from featurestore.heads import Head

FORMAT = 1


@dataclass(frozen=True)
class Promotion:
    """A promoted model, with the proof and the measurements behind it.

    Attributes
    ----------
    model : keras.Model
        A plain Keras model, from uint8 RGB images (batch, height, width, channel=3) to class
        probabilities (batch, class), or predicted values (batch, 1). Train, nest, export or save
        it like any other; :meth:`save` also writes the class names and the lineage.
    parity : Parity
        Of the fused model with the cached head, before anything was trained.
    before, after : dict of str to dict
        Metrics on each held-out split before and after fine-tuning, with ``used_for``: validation
        rows chose head and epoch (``selection``), test rows nothing. Equal where nothing was
        trained, or no epoch was better.
    history : list of dict
        Loss and metrics of each epoch.
    fine_tuning : dict
        Its options, ``rates`` (of the head and each block), ``start`` (validation loss and
        accuracy before the first epoch), ``kept_epoch`` and ``verdict``, what became of it in a
        line. Empty where nothing was trained.
    metadata : dict
        What :meth:`save` writes beside the model: classes, task, lineage.
    seen : Seen
        The samples that the model was trained and selected on.
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

    def save(self, path: str | Path) -> None:
        """Write the model, as it is now, with its metadata as one ``.keras`` file.

        If it was trained further since promotion, the figures of its former weights are left out
        of the file, and the file says so.

        Raises
        ------
        InputError
            If the path does not end in ``.keras`` or cannot be written to.
        """
        further = weights_digest(self.model) != self._weights
        figures = {"before": _brief(self.before), "after": _brief(self.after)}
        figures |= {"parity": self.parity.to_dict(), "fine_tuning": self.fine_tuning}
        metadata = self.metadata | ({} if further else figures) | {"trained_further": further}
        save_model(self.model, path, metadata, self.seen)

    @property
    def report(self) -> dict[str, Any]:
        """Proof, metrics before and after, fine-tuning and its history, as JSON values."""
        return {
            "parity": self.parity.to_dict(),
            "before": self.before,
            "after": self.after,
            "fine_tuning": self.fine_tuning,
            "history": self.history,
        }


def promote(
    head: Head,
    backbone: Backbone,
    *,
    data: Dataset,
    selected_on: Collection[str] = ("val",),
    on_event: OnEvent | None = None,
    **options: Any,
) -> Promotion:
    """Fuse a head onto its backbone, prove that they are one predictor, and fine-tune end to end.

    Parameters
    ----------
    head : Head
        Fitted on cached features.
    backbone : Backbone
        The model that these features came from.
    data : Dataset
        The samples that the head was fitted on, with their images.
    selected_on : collection of str
        Splits by whose rows the head was chosen among others, so that figures on them say so.
    on_event : callable, optional
        Receives :class:`Proved`, :class:`TuningStarted` and :class:`TuningEpochEnded`.
    **options
        Of fine-tuning, see :class:`FineTuning`: ``unfreeze``, ``epochs``, ``learning_rate``,
        ``lr_decay``, ``patience``, ``keep_tuned``, ``batch_size`` and ``seed``.

    Returns
    -------
    Promotion
        ``model`` is a plain Keras model, ``save(path)`` writes it with its class names and
        lineage, ``report`` has the proof and the metrics.

    Raises
    ------
    InputError
        If an option is unknown or out of range.
    PromotionError
        If the head has no Keras form, or backbone or data are not those of the head.
    ParityError
        If the fused model, or its saved file, disagrees with the cached head.

    Warns
    -----
    FeatureStoreWarning
        If the head is stale: the labels, splits or rows of its data set have changed since.

    Examples
    --------
    >>> promotion = promote(head, backbone, data=photos, unfreeze="block5")  # doctest: +SKIP
    >>> promotion.fine_tuning["verdict"]  # doctest: +SKIP
    'kept epoch 3 of 3: val_loss 0.214, 0.251 before'
    """
    tuning = FineTuning.of(options)
    _check_data(head, data)
    if tuning.passes:
        _check_trainable(head, data)
    seen = _seen(head, backbone, data, tuning, selected_on)
    _warn_if_stale(head)
    # All that is drawn for new layers, dropout too; the process's own generator stays as it was.
    with seeded(tuning.seed):
        return _promote(head, backbone, data, tuning, seen, on_event or _ignore)


def _promote(
    head: Head, backbone: Backbone, data: Dataset, tuning: FineTuning, seen: Seen, tell: OnEvent
) -> Promotion:
    fused = fuse(head, backbone)
    free = _free_layers(fused, tuning.unfreeze)
    metadata = _metadata(head, data)
    parity = prove(head, backbone, fused, data, metadata, tell)
    can_measure = data.labels is not None and data.task == head.task

    def measures() -> dict[str, Any]:
        if not can_measure:
            return {}
        return measure(fused.model, data, seen, head.classes, held_out=True)

    before = after = measures()
    tuned = Tuned()
    record: dict[str, Any] = {}
    if tuning.passes:
        tuned, record = _tune(head, backbone, fused, data, free, tuning, tell)
        after = measures() if tuned.kept_epoch else before
    # A fresh model around the same layers leaves the optimizer behind.
    model = keras.Model(fused.model.inputs[0], fused.model.outputs[0], name="promoted")
    weights = weights_digest(model)
    return Promotion(model, parity, before, after, tuned.history, record, metadata, seen, weights)


def _ignore(event: object) -> None:
    pass


def _seen(
    head: Head,
    backbone: Backbone,
    data: Dataset,
    tuning: FineTuning,
    selected_on: Collection[str],
) -> Seen:
    """Return what the model will have seen: the head's rows, and those of fine-tuning."""
    origin = head.lineage["dataset"]
    fitted_on = data
    if data.manifest_digest != origin["manifest_digest"]:
        try:
            fitted_on = head.store.datasets.load(origin["name"], origin["manifest_digest"])
        except NotFoundError as error:
            raise PromotionError(
                f"{head.store.location} no longer has data set {origin['name']!r} as {head.id} was "
                "fitted on it, which says what the model was trained on; give the data set with "
                "those labels and splits, or train the head again with `featurestore train`"
            ) from error
    # The epoch is chosen by the validation rows.
    chosen_by = {*selected_on, "val"} if tuning.passes else selected_on
    datasets = [fitted_on, data] if tuning.passes else [fitted_on]
    file = backbone.spec.get("path")
    return Seen.by(datasets, chosen_by, find_seen(Path(file)) if file else None)


def _check_data(head: Head, data: Dataset) -> None:
    if data.digest != head.key.dataset_digest:
        raise PromotionError(
            f"{head.id} was fitted on other samples than {data.name} holds now; open the data set "
            "as it was, or train the head again on the present one with `featurestore train`"
        )


def _warn_if_stale(head: Head) -> None:
    (changed,) = stale(head.store, [{"lineage": head.lineage}])
    if changed:
        name = head.lineage["dataset"]["name"]
        warnings.warn(
            f"{head.id} is stale: {name} has changed since it was fitted: {changed}; "
            "`featurestore train` fits a head on the present state",
            FeatureStoreWarning,
            stacklevel=3,
        )


def _check_trainable(head: Head, data: Dataset) -> None:
    again = "split again with `featurestore scan`, then `featurestore train`"
    if head.task != data.task:
        found = f"labels for {data.task}" if data.task else "no labels"
        raise PromotionError(
            f"{head.id} was fitted for {head.task}, and {data.name} has {found}; to fine-tune, "
            "give the data set that the head was fitted on"
        )
    if list(head.classes) != list(data.classes):
        odd = sorted(set(map(repr, head.classes)) ^ set(map(repr, data.classes)))
        raise PromotionError(
            f"{head.id} tells {len(head.classes)} classes apart, and {data.name} has "
            f"{len(data.classes)}; not in both: {', '.join(odd[:5])}. To fine-tune, each class "
            f"needs training rows and a head trained on them: {again}"
        )
    if not len(data.rows("train", labelled=True)):
        raise PromotionError(f"{data.name} has no labelled rows in its train split; {again}")


def _free_layers(fused: Fused, unfreeze: str | int | None) -> list[str]:
    """Return the names of the backbone's own layers that are set free."""
    if unfreeze is None:
        return []
    names = set(fused.backbone_layers) - set(RESERVED)
    return unfrozen([each.name for each in fused.model.layers if each.name in names], unfreeze)


def _metadata(head: Head, data: Dataset) -> dict[str, Any]:
    from featurestore.versions import versions

    return {
        "featurestore_model": FORMAT,
        "task": head.task,
        "classes": list(head.classes),
        "head": head.id,
        "features": str(head.key),
        "backbone": head.lineage["backbone"],
        "dataset": {"name": data.name, "manifest": data.manifest_digest},
        "versions": versions(),
    }


def _brief(metrics_of: dict[str, Any]) -> dict[str, Any]:
    # With a thousand classes, a confusion matrix is a megabyte.
    return {
        split: {name: value for name, value in each.items() if name != "confusion"}
        for split, each in metrics_of.items()
    }


def _tune(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    free: list[str],
    tuning: FineTuning,
    tell: OnEvent,
) -> tuple[Tuned, dict[str, Any]]:
    def ended(epoch: int, logs: dict[str, float]) -> None:
        tell(TuningEpochEnded(head.id, epoch, tuning.passes, logs))

    size = tuning.batch_size
    order: dict[str, Any] = {"shuffle": True, "seed": tuning.seed}
    freeze(fused.model, fused.backbone_layers, free)
    of_block = rates(fused.model, fused.backbone_layers, tuning)
    found = boundary(fused.model, fused.backbone_layers, _stored_refs(head, backbone))
    if found is not None:
        ref, tensor = found
        model = keras.Model(tensor, fused.model.outputs[0])
        features = _boundary_features(data, backbone, ref, head, tell)
        train = features.py_dataset("train", batch_size=size, **order)
        watched = features.py_dataset("val", batch_size=size)
    else:
        model = fused.model
        train = labelled_images(data, backbone, "train", size, **order)
        watched = labelled_images(data, backbone, "val", size)
    tell(TuningStarted(head.id, of_block))
    held_out = watched if len(watched) else None
    tuned = fine_tune(
        model,
        fused.backbone_layers,
        of_block,
        train,
        held_out,
        tuning,
        steps=fused.steps,
        on_epoch=ended,
    )
    record = {
        **tuning.model_dump(),
        "epochs": tuning.passes,
        "rates": of_block,
        "start": tuned.start,
        "kept_epoch": tuned.kept_epoch,
        "verdict": verdict(tuned, tuning),
    }
    return tuned, record


def _stored_refs(head: Head, backbone: Backbone) -> dict[str, str]:
    """Return the layer ref that stores what a layer of the fused model gives, by its name."""
    names = set(backbone.layer_names)
    refs = {
        info.name: info.name
        for info in backbone.layers()
        # Scaled images are no work saved; of a layer that is called twice, the name alone does
        # not tell which call.
        if info.flops > 0 and f"{info.name}@2" not in names
    }
    own = LayerRef.parse(head.key.ref)
    return {**refs, "reduction" if own.reduction else own.layer: head.key.ref}


def _boundary_features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, tell: OnEvent
) -> Features:
    try:
        return extract(data, backbone, [ref], head.store, on_event=tell)[ref]
    except ActivationError:
        return extract(data, backbone, [ref], head.store, dtype="float32", on_event=tell)[ref]
