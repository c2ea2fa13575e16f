"""How an activation becomes one vector a sample: over which axes, and under which mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore.backbone.foreign import is_keras
from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError

CHANNELS_LAST, CHANNELS_FIRST = "channels_last", "channels_first"

# They may put the channels on another axis while the number of axes stays.
_MOVES_AXES = {
    "Dot",
    "Einsum",
    "EinsumDense",
    "Matmul",
    "Moveaxis",
    "Permute",
    "Reshape",
    "Rot90",
    "Swapaxes",
    "Tensordot",
    "Transpose",
}


def layouts(graph: Graph) -> list[str | None]:
    """Return for every node on which end its channels are; None where its neighbours disagree.

    Layers with a ``data_format`` know it of what they take and give; what hands on its input axis
    by axis (an activation, an addition) has the layout of its neighbours, before and after it.
    Where nothing shows it, the last axis is the channels'.
    """
    group = list(range(len(graph.nodes)))

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    shown: list[tuple[int, str]] = [(0, CHANNELS_LAST)]
    for number, node in enumerate(graph.nodes[1:], start=1):
        layout = _shown_by(node)
        parents = [parent for parent, output in node.inputs if _like(graph, node, parent, output)]
        for parent in parents:
            group[root(parent)] = root(number)
        if layout is not None:
            around = parents if parents else [parent for parent, _ in node.inputs]
            shown += [(each, layout) for each in (number, *around)]
    found: dict[int, set[str]] = {}
    for number, layout in shown:
        found.setdefault(root(number), set()).add(layout)
    known = [found.get(root(number), {CHANNELS_LAST}) for number in range(len(graph.nodes))]
    return [next(iter(each)) if len(each) == 1 else None for each in known]


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
        Of one sample's whole activation.
    layout : str or None
        Where its channels are.

    Raises
    ------
    BackboneError
        If it cannot be reduced, or not as a plain Keras model would.
    """
    if len(shape) < 2:
        raise BackboneError(
            f"layer {ref.layer!r} gives one vector a sample already (shape {shape}): expected"
            f" {ref.layer} without :{ref.reduction}"
        )
    if layout is None:
        raise BackboneError(
            f"layer {ref.layer!r} stands between layers of channels_first and channels_last, so"
            f" that its channels are not known: expected {ref.layer} without :{ref.reduction}"
        )
    if is_masked(node) and (ref.reduction != "avg" or len(shape) != 2):
        raise BackboneError(
            f"layer {ref.layer!r} is masked, and Keras has no masked :{ref.reduction} of"
            f" {len(shape)} axes: expected {ref.layer} without :{ref.reduction}"
            + (f", or {ref.layer}:avg" if len(shape) == 2 else "")
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
    # A compiler that takes max(sqrt(x)) for sqrt(max(x)), as TensorFlow's does, passes NaN over.
    axes = list(range(1, len(activation.shape)))
    axes.pop(0 if layer.data_format == CHANNELS_FIRST else -1)
    lost = keras.ops.any(keras.ops.isnan(activation), axis=tuple(axes))
    return keras.ops.where(lost, float("nan"), reduced)


def is_masked(node: Node) -> bool:
    """Whether what a node gives carries a mask of its steps."""
    return getattr(node.outputs[0], "_keras_mask", None) is not None


def unmasked(tensor: Any) -> Any:
    """Return a symbolic tensor without its mask, as stored features are."""
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


def _like(graph: Graph, node: Node, parent: int, output: int) -> bool:
    """Whether a node's output has its axes in the order of one of its inputs."""
    given: Sequence[Any] = graph.nodes[parent].outputs[output].shape
    found = node.outputs[0].shape
    if node.kind in _MOVES_AXES or len(given) != len(found) or len(found) < 3:
        return False
    return is_keras(type(node.operation)) or tuple(given) == tuple(found)
