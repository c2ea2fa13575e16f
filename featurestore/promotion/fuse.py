"""Fuse a backbone and a fitted head into one plain Keras model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.copying import clone_onto
from featurestore.errors import PromotionError
from featurestore.heads.decision import Threshold
from featurestore.heads.network import logits_model
from featurestore.promotion.class_names import CLASSES, classes_layer
from featurestore.promotion.convert import as_layers, check, no_form

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.heads import Head


@dataclass(frozen=True)
class Fused:
    """A head fused onto its backbone.

    Attributes
    ----------
    model : keras.Model
        From uint8 RGB images (batch, height, width, channel=3) to class probabilities
        (batch, class), or to the predicted value (batch, 1) of a regressor.
    features : str
        Name of the layer or operation of ``model`` whose output is the features, (batch, …).
    scores : str
        Name of the layer of ``model`` whose output is the scores, (batch, class): logits,
        decision values, or predicted values.
    backbone_layers : tuple of str
        Names of the layers and operations in ``model`` that come from the backbone, its
        preprocessing included, in order.
    threshold : Threshold or None
        Of the head; the probabilities are shifted so that it lies at 0.5.
    """

    model: keras.Model
    features: str
    scores: str
    backbone_layers: tuple[str, ...]
    threshold: Threshold | None = None


def fuse(head: Head, backbone: Backbone) -> Fused:
    """Build the promoted model from copies of the head's and the backbone's layers.

    Raises
    ------
    PromotionError
        If the head has no Keras form, the backbone is not the one of its features, or new layers
        of Keras would not compute in float32, as the head does.
    """
    if (policy := keras.config.dtype_policy().name) != "float32":
        raise PromotionError(
            f"the dtype policy of Keras is {policy}, and heads compute in float32; call "
            "keras.config.set_dtype_policy('float32') first"
        )
    if head.foreign:  # Known without loading it.
        raise no_form(head.estimator)
    ref = LayerRef.parse(head.key.ref)
    if backbone.prefix_digest(ref.layer) != head.key.prefix_digest:
        recorded = head.provenance.get("prefix") or {}
        fields = backbone.prefix_fields(ref.layer)
        differ = [name for name, value in fields.items() if recorded.get(name) != value]
        raise PromotionError(
            f"{head.id} was fitted on features of another model: {head.key.model} up to "
            f"{ref.layer}, as stored, and {backbone.name} differ in "
            f"{', '.join(differ) or 'their digest'}; build the backbone as it was for "
            "`featurestore extract`"
        )
    base = backbone.cut(ref)
    x = base.outputs[0]
    names = tuple(operation.name for operation in base.operations)
    # Keras wants every name once, and a backbone may be a promoted model itself.
    prefix = "head_"
    while any(name.startswith(prefix) for name in names):
        prefix = f"head_{prefix}"
    softmax, named = (
        f"{prefix}{name}" if name in names else name for name in ("probabilities", CLASSES)
    )
    if head.kind == "sklearn":
        flat = x if len(x.shape) == 2 else keras.layers.Flatten(name=f"{prefix}flatten")(x)
        scores, output = as_layers(head.fitted, flat, prefix, softmax)
    elif head.classes:
        scores = clone_onto(logits_model(head.fitted), x, prefix)
        output = keras.layers.Softmax(name=softmax)(scores)
    else:
        scores = output = clone_onto(head.fitted, x, prefix)
    if head.classes:
        output = classes_layer(head.classes, named)(output)
    model = keras.Model(base.inputs, output, name="promoted")
    threshold = Threshold.of(head.fitted) if head.kind == "sklearn" else None
    return Fused(model, _maker(x), _maker(scores), names, threshold)


def _maker(tensor: Any) -> str:
    return tensor._keras_history.operation.name


def with_internals(model: keras.Model, fused: Fused) -> keras.Model:
    """Return a fused model, or a copy of one, that gives (features, scores, output)."""
    outputs = {operation.name: operation.output for operation in model.operations}
    inside = [outputs[fused.features], outputs[fused.scores]]
    return keras.Model(model.inputs[0], [*inside, model.outputs[0]])


def promotable(head: Head) -> bool:
    """Whether a head has a Keras form."""
    if head.kind == "keras":
        return True
    if head.foreign:
        return False
    try:
        check(head.fitted)
    except PromotionError:
        return False
    return True
