"""Fuse a backbone and a fitted head into one plain Keras model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.copying import clone_onto
from featurestore.backbone.onnx_part import OnnxPart
from featurestore.errors import PromotionError
from featurestore.heads.decision import Threshold
from featurestore.heads.network import logits_model
from featurestore.promotion import onnx_model
from featurestore.promotion.class_names import CLASSES, classes_layer
from featurestore.promotion.convert import as_layers, check, no_form
from featurestore.promotion.onnx_model import OnnxModel

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.heads import Head


@dataclass(frozen=True)
class Fused:
    """A head fused onto its backbone.

    Attributes
    ----------
    model : keras.Model or OnnxModel
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

    model: Any
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
    if backbone.is_onnx:
        return _fuse_onnx(head, backbone, ref)
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
    scores, output = _head_layers(head, x, prefix, softmax)
    if head.classes:
        output = classes_layer(head.classes, named)(output)
    model = keras.Model(base.inputs, output, name="promoted")
    return Fused(model, _maker(x), _maker(scores), names, _threshold(head))


def _fuse_onnx(head: Head, backbone: Backbone, ref: LayerRef) -> Fused:
    x = keras.Input(backbone.shape(ref), name="features")
    layers = keras.Model(x, _head_layers(head, x, "head_", "probabilities"))
    part = backbone.computation([ref])
    assert isinstance(part, OnnxPart)
    model = onnx_model.fused(part, layers, head.classes)
    return Fused(model, "features", "scores", (), _threshold(head))


def _threshold(head: Head) -> Threshold | None:
    return Threshold.of(head.fitted) if head.kind == "sklearn" else None


def _head_layers(head: Head, x: Any, prefix: str, softmax: str) -> tuple[Any, Any]:
    """Apply a head to features (batch, …); return scores and output, as :func:`as_layers`."""
    if head.kind == "sklearn":
        flat = x if len(x.shape) == 2 else keras.layers.Flatten(name=f"{prefix}flatten")(x)
        return as_layers(head.fitted, flat, prefix, softmax)
    if head.classes:
        scores = clone_onto(logits_model(head.fitted), x, prefix)
        return scores, keras.layers.Softmax(name=softmax)(scores)
    scores = clone_onto(head.fitted, x, prefix)
    return scores, scores


def _maker(tensor: Any) -> str:
    return tensor._keras_history.operation.name


def with_internals(model: Any, fused: Fused) -> Any:
    """Return a fused model, or a copy of one, that gives (features, scores, output)."""
    if isinstance(model, OnnxModel):
        return model.with_internals()
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
