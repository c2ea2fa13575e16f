"""How an activation becomes one vector per sample: over which axes, and under which mask."""

from __future__ import annotations

from typing import Any

from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError


def reduced_shape(
    ref: LayerRef, graph: Graph, node: Node, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of one sample's reduced activation, given that of the whole one.

    Raises
    ------
    BackboneError
        If it cannot be reduced, or not as a plain Keras model would.
    """
    whole = f"expected {ref.layer} without :{ref.reduction}"
    if len(shape) < 2:
        raise BackboneError(
            f"layer {ref.layer!r} gives one vector per sample already (shape {shape}): {whole}"
        )
    # Which axis has the channels of a layer in between does not show.
    if any(getattr(each.operation, "data_format", "") == "channels_first" for each in graph.nodes):
        raise BackboneError(
            f"layer {ref.layer!r} is in a network with channels_first layers, whose channels may be"
            f" on either axis: {whole}"
        )
    if is_masked(node) and (ref.reduction != "avg" or len(shape) != 2):
        raise BackboneError(
            f"layer {ref.layer!r} is masked, and Keras has no masked :{ref.reduction} of"
            f" {len(shape)} axes: {whole}" + (f", or {ref.layer}:avg" if len(shape) == 2 else "")
        )
    return shape[-1:]


def reduction(ref: LayerRef, rank: int) -> Any:
    """Return the layer that reduces a ref's activation of ``rank`` axes, or None."""
    import keras

    if ref.reduction is None:
        return None
    kind = {"avg": "Average", "max": "Max"}[ref.reduction]
    layer = getattr(keras.layers, f"Global{kind}Pooling{rank - 2}D")
    return layer(name="reduction", dtype="float32", data_format="channels_last")


def reduce(activation: Any, layer: Any) -> Any:
    """Cast an activation (batch, …) to float32 and reduce it, under its mask; NaN stays NaN."""
    import keras

    mask = getattr(activation, "_keras_mask", None)
    activation = keras.ops.cast(activation, "float32")
    if layer is None:
        return activation
    if mask is not None:
        return layer(activation, mask=mask)
    reduced = layer(activation)
    if not type(layer).__name__.startswith("GlobalMax"):
        return reduced
    # TensorFlow compiles max(sqrt(x)) to sqrt(max(x)), which hides NaN.
    axes = tuple(range(1, len(activation.shape) - 1))
    lost = keras.ops.any(keras.ops.isnan(activation), axis=axes)
    return keras.ops.where(lost, float("nan"), reduced)


def is_masked(node: Node) -> bool:
    """Whether a node's output carries a mask of its steps."""
    return getattr(node.outputs[0], "_keras_mask", None) is not None


def unmasked(tensor: Any) -> Any:
    """Return a symbolic tensor without its mask, as features are stored."""
    import keras

    copy = keras.ops.copy(tensor)
    copy._keras_history.operation.name = "reduction"
    return copy
