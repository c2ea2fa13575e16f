"""Making Keras layers: the same ones every time, and copies with their weights."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.backbone.graph import Graph, Node, Tensor, dissolve
from featurestore.errors import BackboneError, one_line

# At most this many numbers of a Normalization go into its configuration.
_FEW = 64


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Make Keras layers inside draw their seeds from ``seed``.

    Keras takes the seeds of initializers and of dropout from Python's random generator. Its state
    is restored afterwards; no other global generator is touched.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def clone(
    graph: Graph, inputs: Tensor, wanted: Sequence[int], prefix: str = "", *, fixed: bool = False
) -> list[Tensor]:
    """Copy nodes onto a symbolic tensor: new layers of the same configuration and weights.

    ``inputs`` takes the place of the graph's input; each wanted node has one output. The prefix is
    put before every canonical name. ``fixed`` puts the learned mean and variance of a
    ``Normalization`` into its configuration too, because Keras' ``set_weights`` does not update the
    numbers that the layer computes with. This changes its digest.
    """
    copies: dict[int, Any] = {}

    def copied(node: Node) -> Any:
        key = id(node.operation)
        if key not in copies:
            copies[key] = _copy(node.operation, prefix + graph.layer_names[key], fixed)
        return at_rest(copies[key])

    tensors = graph.run(inputs, wanted, copied)
    originals = {id(node.operation): node.operation for node in graph.nodes[1:]}
    for key, copy in copies.items():
        _copy_weights(originals[key], copy)
    return [outputs[0] for outputs in tensors]


def recast(graph: Graph, shape: Sequence[int | None], precision: str) -> Graph:
    """Copy a network so that its layers compute in another type; weights stay float32.

    Parameters
    ----------
    graph : Graph
    shape : sequence of int or None
        (batch, height, width, channel=3) of what the network takes.
    precision : {"bfloat16", "float16"}
        As Keras computes under the policy ``mixed_bfloat16`` or ``mixed_float16``.
    """
    import keras

    copies: dict[int, Any] = {}

    def copied(node: Node) -> Callable:
        operation, key = node.operation, id(node.operation)
        if not isinstance(operation, keras.Layer) or operation.quantization_mode:
            return operation
        if key not in copies:
            dtype = {"dtype": f"mixed_{precision}"}
            copies[key] = _copy(operation, graph.layer_names[key], False, dtype)
        return at_rest(copies[key])

    image = keras.KerasTensor(shape, dtype=graph.nodes[0].outputs[0].dtype)
    tensors = graph.run(image, range(len(graph.nodes)), copied)
    for node in graph.nodes[1:]:
        if id(node.operation) in copies:
            _copy_weights(node.operation, copies[id(node.operation)])
    nodes = [
        replace(node, operation=copies.get(id(node.operation), node.operation), outputs=tuple(each))
        for node, each in zip(graph.nodes, tensors, strict=True)
    ]
    return Graph(nodes, graph.outputs, graph.own_names)


def clone_onto(model: Any, tensor: Tensor, prefix: str = "") -> Tensor:
    """Copy a functional model of one input and one output onto a symbolic tensor.

    Nested models are flattened, and the prefix is put before every canonical name.
    """
    graph = dissolve(model)
    ends = [number for number, _ in graph.outputs]
    return clone(graph, tensor, ends, prefix, fixed=True)[0]


def set_weights(layer: Any, weights: Sequence[np.ndarray]) -> None:
    """Set the weights of a layer or model, and what its layers derive from them.

    Keras' ``Normalization`` computes with a copy of its weights, which its own ``set_weights`` does
    not update.
    """
    layer.set_weights(weights)
    for each in layer._flatten_layers():
        if hasattr(each, "finalize_state"):
            each.finalize_state()


def at_rest(layer: Any) -> Callable:
    """Return the call of a layer that is not in training mode unless the model is told to train.

    Preprocessing layers have ``training=True`` as their default. Keras hands the mode of one layer
    on to all that are called after it without a mode, so that one ``Resizing`` would put every
    BatchNorm of the model in training mode.
    """
    parameter = inspect.signature(layer.call).parameters.get("training")
    if parameter is None or parameter.default in (None, False, parameter.empty):
        return layer
    return lambda *args, **kwargs: layer(*args, **{**kwargs, "training": False})


def _copy(operation: Any, name: str, fixed: bool, options: Mapping[str, Any] = {}) -> Any:
    try:
        config = operation.get_config() | dict(options)
        if fixed and _adapted(operation):
            mean, variance, _ = operation.get_weights()
            config |= {"mean": mean.tolist(), "variance": variance.tolist()}
        copy = type(operation).from_config(config)
    except Exception as error:  # whatever a layer raises that cannot describe itself
        raise BackboneError(
            f"layer {name!r} ({type(operation).__name__}) cannot be built from its configuration:"
            f" {one_line(error)}"
        ) from error
    copy.name = name
    return copy


def _adapted(operation: Any) -> bool:
    """Whether a layer is a Normalization that learned a few numbers, such as a mean a channel."""
    import keras

    if not isinstance(operation, keras.layers.Normalization) or not operation.weights:
        return False
    return int(np.prod(operation.weights[0].shape)) <= _FEW


def _copy_weights(source: Any, copy: Any) -> None:
    if not getattr(copy, "weights", None):
        return
    # Quantized layers hold their weights in another order.
    names = [weight.name for weight in source.weights]
    arrays = dict(zip(names, source.get_weights(), strict=True))
    wanted = [weight.name for weight in copy.weights]
    same = len(arrays) == len(names) and set(arrays) == set(wanted)
    set_weights(copy, [arrays[name] for name in wanted] if same else source.get_weights())
