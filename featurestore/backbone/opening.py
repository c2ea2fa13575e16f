"""Layers that hold a stack of blocks, such as the encoder of a vision transformer, opened.

Such a layer is one node of the model's graph. Its own ``call`` on symbolic tensors gives the graph
of its sub-layers, so that the network can be cut between its blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.backbone.custom import is_keras

# Batches on which an opened layer is compared: a layer that took the size of the batch for a
# constant fails on one of them.
BATCHES = (1, 2)


def block_class(layer: Any) -> type | None:
    """Return the class of the blocks that a layer holds a stack of; None if it holds none.

    Blocks are two or more direct sub-layers of one class that is not Keras' own, each of which has
    two or more sub-layers with weights: an attention and a perceptron.
    """
    import keras

    if not isinstance(layer, keras.Layer) or is_keras(type(layer)):
        return None
    blocks = [part for part in _parts(layer) if not is_keras(type(part)) and _is_block(part)]
    classes = Counter(map(type, blocks)).most_common(1)
    return classes[0][0] if classes and classes[0][1] > 1 else None


def opened(call: Any) -> Any | None:
    """Return the function of sub-layers that a call of a layer computes; None if it stays closed.

    Parameters
    ----------
    call : keras.src.ops.node.Node
        A call of a layer that holds a stack of blocks.

    Returns
    -------
    keras.Function or None
        From the tensors that the call takes to its outputs, flattened. None if the layer does not
        compute on symbolic tensors, or computes something else on them than on real ones.
    """
    tensors = call.arguments.keras_tensors
    shapes = [tuple(tensor.shape) for tensor in tensors]
    function = inside(call.operation, (call.arguments.args, call.arguments.kwargs), shapes)
    if function is None:
        return None
    outputs = [[tuple(tensor.shape) for tensor in of.outputs] for of in (function, call)]
    try:
        return function if outputs[0] == outputs[1] and _computes_alike(function, call) else None
    except Exception:  # whatever a layer raises that took the size of a batch for a constant
        return None


def inside(operation: Any, arguments: Any, shapes: Sequence[tuple[int | None, ...]]) -> Any | None:
    """Return the function of sub-layers that a call of a layer is made of.

    Parameters
    ----------
    operation : keras.Operation
    arguments : (tuple, dict)
        Of the call.
    shapes : sequence of tuple
        Of the symbolic tensors in the arguments, in their order: (batch, …).

    Returns
    -------
    keras.Function or None
        None if the layer does not compute on symbolic tensors.
    """
    import keras

    inputs = [
        keras.Input(batch_shape=shape, dtype=tensor.dtype)
        for tensor, shape in zip(symbolic(arguments), shapes, strict=True)
    ]
    try:
        outputs = keras.tree.flatten(called(operation.call, arguments, inputs))
        return keras.Function(inputs, outputs)
    except Exception:  # whatever a layer raises on tensors without values
        return None


def _parts(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _is_block(layer: Any) -> bool:
    return sum(bool(part.weights) for part in _parts(layer)) > 1


def symbolic(arguments: Any) -> list[Any]:
    """Return the symbolic tensors in the arguments of a recorded call, in their order."""
    import keras

    leaves = keras.tree.flatten(arguments)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]


def called(function: Any, arguments: Any, tensors: Any) -> Any:
    """Call a function with recorded arguments, and other tensors in place of the symbolic ones."""
    import keras

    left = iter(tensors)
    args, kwargs = keras.tree.map_structure(
        lambda leaf: next(left) if isinstance(leaf, keras.KerasTensor) else leaf, arguments
    )
    return function(*args, **kwargs)


def _computes_alike(function: Any, call: Any) -> bool:
    """Whether an opened layer gives the same bits as the layer itself, in several batches."""
    import keras

    generator = np.random.default_rng(0)
    for batch in BATCHES:
        tensors = [
            keras.ops.convert_to_tensor(
                generator.normal(size=[size or batch for size in tensor.shape]), tensor.dtype
            )
            for tensor in call.arguments.keras_tensors
        ]
        arguments = call.arguments.args, call.arguments.kwargs
        closed = keras.tree.flatten(called(call.operation, arguments, tensors))
        pairs = zip(function(tensors), closed, strict=True)
        arrays = [map(keras.ops.convert_to_numpy, pair) for pair in pairs]
        if not all(np.array_equal(ours, own, equal_nan=True) for ours, own in arrays):
            return False
    return True
