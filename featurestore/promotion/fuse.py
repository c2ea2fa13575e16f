"""One plain Keras model out of a backbone's layers and a fitted head's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.graph import clone_onto
from featurestore.errors import PromotionError
from featurestore.heads.network import ending
from featurestore.promotion.convert import require_convertible, scores_tensor

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
    scores : keras.Model
        The same layers up to the scores that the cached head gives: logits, decision values,
        or predicted values, (batch, class).
    backbone_layers : tuple of str
        Names of the layers in ``model`` that come from the backbone, in order.
    """

    model: keras.Model
    scores: keras.Model
    backbone_layers: tuple[str, ...]


def fuse(head: Head, backbone: Backbone) -> Fused:
    """Build the promoted model; nothing is trained, neither the head nor the backbone is touched.

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
        Where the head has no Keras form, or the backbone is not the one of its features.
    """
    ref = check_origin(head, backbone)
    base = backbone.cut(ref)
    x = base.outputs[0]
    if head.kind == "sklearn":
        scores = scores_tensor(head.estimator, _flat(x))
        output = _probabilities(scores) if head.task == "classification" else scores
    else:
        scores, output = _keras_head(head, x)
    model = keras.Model(base.inputs, output, name="promoted")
    layers = tuple(layer.name for layer in base.layers)
    return Fused(model, keras.Model(base.inputs, scores, name="scores"), layers)


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
    """Return the layer ref of a head's features, where the backbone is the one they came from."""
    ref = LayerRef.parse(head.key.ref)
    if backbone.prefix_digest(ref.layer) != head.key.prefix_digest:
        raise PromotionError(
            f"{head.id} was fitted on features of another model: {head.key.model} up to "
            f"{ref.layer}, as stored, and {backbone.name} differ in weights, graph or "
            "preprocessing; build the backbone as it was for `featurestore extract`"
        )
    return ref


def _flat(x: Any) -> Any:
    return x if len(x.shape) == 2 else keras.layers.Flatten(name="head_flatten")(x)


def _probabilities(scores: Any) -> Any:
    return keras.layers.Softmax(name="probabilities")(scores)


def _keras_head(head: Head, x: Any) -> tuple[Any, Any]:
    """Clone a Keras head onto the features; its scores are what comes before a last softmax."""
    output = clone_onto(head.estimator, x, prefix="head_")
    last = output._keras_history.operation
    if isinstance(last, keras.layers.Softmax) or (
        isinstance(last, keras.layers.Activation) and last.activation is keras.activations.softmax
    ):
        return last.input, output
    if head.task == "regression" or ending(head.estimator) == "softmax":
        return output, output
    return output, _probabilities(output)
