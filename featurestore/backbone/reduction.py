"""How an activation becomes one vector per sample: over which axes, and under which mask."""

from __future__ import annotations

from typing import Any

from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError

CHANNELS_LAST, CHANNELS_FIRST = "channels_last", "channels_first"


def layouts(graph: Graph) -> list[str | None]:
    """Return the ``data_format`` of every node's output; None if it is unknown.

    Without any ``channels_first`` layer, everything is ``channels_last``. Otherwise a layer shows
    its own ``data_format``, and a normalization its axis.
    """
    shown = [CHANNELS_LAST, *map(_shown_by, graph.nodes[1:])]
    return shown if CHANNELS_FIRST in shown else [CHANNELS_LAST for _ in shown]


def reduced_shape(
    ref: LayerRef, node: Node, shape: tuple[int, ...], layout: str | None
) -> tuple[int, ...]:
    """Return the shape of one sample's reduced activation.

    Parameters
    ----------
    ref : LayerRef
        With a reduction.
    node : Node
        Its layer.
    shape : tuple of int
        Shape of one sample's whole activation.
    layout : str or None
        Where its channels are, see :func:`layouts`.

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
    if layout is None:
        raise BackboneError(
            f"layer {ref.layer!r} is in a channels_first network and does not show which axis its"
            f" channels are on: {whole}, or a layer with a data_format"
        )
    if is_masked(node) and (ref.reduction != "avg" or len(shape) != 2):
        raise BackboneError(
            f"layer {ref.layer!r} is masked, and Keras has no masked :{ref.reduction} of"
            f" {len(shape)} axes: {whole}" + (f", or {ref.layer}:avg" if len(shape) == 2 else "")
        )
    return shape[:1] if layout == CHANNELS_FIRST else shape[-1:]


def reduction(ref: LayerRef, rank: int, layout: str | None) -> Any:
    """Return the layer that reduces a ref's activation of ``rank`` axes, or None."""
    import keras

    if ref.reduction is None:
        return None
    kind = {"avg": "Average", "max": "Max"}[ref.reduction]
    layer = getattr(keras.layers, f"Global{kind}Pooling{rank - 2}D")
    return layer(name="reduction", dtype="float32", data_format=layout)


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
    axes = list(range(1, len(activation.shape)))
    axes.pop(0 if layer.data_format == CHANNELS_FIRST else -1)
    lost = keras.ops.any(keras.ops.isnan(activation), axis=tuple(axes))
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


def _shown_by(node: Node) -> str | None:
    layout = getattr(node.operation, "data_format", None)
    if layout in (CHANNELS_FIRST, CHANNELS_LAST) and node.kind != "Flatten":
        return str(layout)
    rank = len(node.outputs[0].shape)
    if node.kind in ("BatchNormalization", "GroupNormalization") and rank > 2:
        axis = node.operation.axis
        return {1: CHANNELS_FIRST, -1: CHANNELS_LAST, rank - 1: CHANNELS_LAST}.get(axis)
    return None
