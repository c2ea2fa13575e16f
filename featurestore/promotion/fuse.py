"""One plain Keras model out of a backbone's layers and a fitted head's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.copying import clone_onto
from featurestore.errors import PromotionError
from featurestore.heads.network import logits_model
from featurestore.promotion.convert import (
    probabilities_tensor,
    require_convertible,
    scores_tensor,
)

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
        Name of the layer or operation in ``model`` that gives the features, (batch, …).
    scores : str
        Name of the layer in ``model`` that gives what the cached head decides by: logits,
        decision values, or predicted values, (batch, class).
    backbone_layers : tuple of str
        Names of the layers and operations in ``model`` that come from the backbone, its
        preprocessing included, in order.
    """

    model: keras.Model
    features: str
    scores: str
    backbone_layers: tuple[str, ...]


def fuse(head: Head, backbone: Backbone) -> Fused:
    """Build the promoted model, without changing the head or the backbone.

    Parameters
    ----------
    head : Head
        Fitted on features of this backbone.
    backbone : Backbone
        The frozen model.

    Returns
    -------
    Fused

    Raises
    ------
    PromotionError
        If the head has no Keras form, or the backbone is not the one of its features.
    """
    ref = check_origin(head, backbone)
    if head.kind == "sklearn":
        require_convertible(head.estimator)
    base = backbone.cut(ref)
    names = tuple(operation.name for operation in base.operations)
    prefix = _free_prefix(names)
    x = base.outputs[0]
    if head.kind == "sklearn":
        scores = scores_tensor(head.estimator, _flat(x, prefix), prefix)
    else:
        scoring = logits_model(head.estimator) if head.classes else head.estimator
        scores = clone_onto(scoring, x, prefix)
    output = scores
    if head.task == "classification":
        softmax = f"{prefix}probabilities" if "probabilities" in names else "probabilities"
        if head.kind == "sklearn":
            output = probabilities_tensor(head.estimator, scores, prefix, softmax)
        else:
            output = keras.layers.Softmax(name=softmax)(scores)
    model = keras.Model(base.inputs, output, name="promoted")
    return Fused(model, _maker(base.outputs[0]), _maker(scores), names)


def _maker(tensor: Any) -> str:
    return tensor._keras_history.operation.name


def with_internals(model: keras.Model, fused: Fused) -> keras.Model:
    """Return a fused model, or a copy of one, that gives (features, scores, output)."""
    inside = [output_of(model, name) for name in (fused.features, fused.scores)]
    return keras.Model(model.inputs[0], [*inside, model.outputs[0]])


def output_of(model: keras.Model, name: str) -> Any:
    """Return the tensor that a layer or operation of a model gives."""
    return next(each.output for each in model.operations if each.name == name)


def promotable(head: Head) -> bool:
    """Whether a head has a Keras form."""
    if head.kind == "keras":
        return True
    try:
        require_convertible(head.estimator)
    except PromotionError:
        return False
    return True


def check_origin(head: Head, backbone: Backbone) -> LayerRef:
    """Return the layer ref of a head's features; PromotionError if another backbone made them."""
    ref = LayerRef.parse(head.key.ref)
    if backbone.prefix_digest(ref.layer) != head.key.prefix_digest:
        raise PromotionError(
            f"{head.id} was fitted on features of another model: {head.key.model} up to "
            f"{ref.layer}, as stored, and {backbone.name} differ in weights, graph or "
            "preprocessing; build the backbone as it was for `featurestore extract`"
        )
    return ref


def _free_prefix(names: Collection[str]) -> str:
    """Return a prefix for the head's layers that no layer of the backbone begins with."""
    prefix, count = "head_", 1
    while any(name.startswith(prefix) for name in names):
        count += 1
        prefix = f"head{count}_"
    return prefix


def _flat(x: Any, prefix: str) -> Any:
    return x if len(x.shape) == 2 else keras.layers.Flatten(name=f"{prefix}flatten")(x)
