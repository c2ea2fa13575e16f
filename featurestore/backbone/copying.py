"""Making Keras layers: the same ones every time, and copies with their weights."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.backbone.custom import own_code
from featurestore.backbone.graph import Graph, Node, Tensor, dissolve
from featurestore.errors import BackboneError, one_line


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
    ``Normalization`` into its configuration, because Keras' ``set_weights`` does not update the
    numbers that the layer computes with. This changes its digest.
    """
    copies: dict[int, Any] = {}

    def copied(node: Node) -> Any:
        key = id(node.operation)
        if key not in copies:
            copies[key] = _copy(node.operation, prefix + graph.layer_names[key], fixed=fixed)
        return inference_by_default(copies[key])

    tensors = graph.run(inputs, wanted, copied)
    originals = {id(node.operation): node.operation for node in graph.nodes[1:]}
    for key, copy in copies.items():
        _copy_weights(originals[key], copy)
    return [outputs[0] for outputs in tensors]


def recast(graph: Graph, precision: str) -> Graph:
    """Copy a network so that its layers compute in another type; weights stay float32.

    ``precision`` is ``bfloat16`` or ``float16``: as Keras computes under the policy
    ``mixed_bfloat16`` or ``mixed_float16``. A graph keeps its copy.
    """
    import keras

    if precision in graph.recasts:
        return graph.recasts[precision]
    copies: dict[int, Any] = {}

    def copied(node: Node) -> Callable:
        operation, key = node.operation, id(node.operation)
        if not isinstance(operation, keras.Layer):
            return operation
        if key not in copies:
            dtype = {"dtype": f"mixed_{precision}"}
            copies[key] = _copy(operation, graph.layer_names[key], options=dtype)
        return inference_by_default(copies[key])

    image = graph.nodes[0].outputs[0]
    image = keras.KerasTensor(image.shape, dtype=image.dtype)
    outputs = graph.run(image, range(len(graph.nodes)), copied)
    nodes = []
    for node, own in zip(graph.nodes, outputs, strict=True):
        operation = copies.get(id(node.operation), node.operation)
        if operation is not node.operation:
            _copy_weights(node.operation, operation)
        nodes.append(replace(node, operation=operation, outputs=tuple(own)))
    graph.recasts[precision] = Graph(nodes, graph.outputs)
    return graph.recasts[precision]


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
    for inner in layer._flatten_layers():
        if hasattr(inner, "finalize_state"):
            inner.finalize_state()


def inference_by_default(layer: Any) -> Callable:
    """Return the call of a layer that is not in training mode unless the model is told to train.

    Preprocessing layers have ``training=True`` as their default. Keras hands the mode of one layer
    on to all that are called after it without a mode, so that one ``Resizing`` would put every
    BatchNorm of the model in training mode.
    """
    parameter = inspect.signature(layer.call).parameters.get("training")
    if parameter is None or parameter.default in (None, False, parameter.empty):
        return layer
    return lambda *args, **kwargs: layer(*args, **{**kwargs, "training": False})


def _copy(
    operation: Any, name: str, *, fixed: bool = False, options: Mapping[str, Any] = {}
) -> Any:
    import keras

    def built(config: dict[str, Any]) -> Any:
        return type(operation).from_config({**config, **options})

    with keras.saving.CustomObjectScope({code.__name__: code for code in own_code(operation)}):
        try:
            config = operation.get_config()
            if fixed and isinstance(operation, keras.layers.Normalization) and operation.weights:
                mean, variance, _ = operation.get_weights()
                config |= {"mean": mean.tolist(), "variance": variance.tolist()}
            copy = built(config)
        except Exception as error:  # whatever a layer raises that cannot describe itself
            config = _constructor_arguments(operation)
            try:
                copy = built(config)
            except Exception:
                raise BackboneError(
                    f"layer {name!r} ({type(operation).__name__}) cannot be built from its "
                    f"configuration: {one_line(error)}"
                ) from error
            # Of the copy, Keras saves what it can be built from.
            copy.get_config = lambda: {**config, "name": copy.name, "trainable": copy.trainable}
    copy.name = keras_name(name)
    return copy


def keras_name(name: str) -> str:
    """Return the name that a layer has in a cut: Keras loads none with a slash in its name."""
    return name.replace("/", ".")


def _constructor_arguments(operation: Any) -> dict[str, Any]:
    """Return the arguments from which a layer was built, as far as they are known.

    Some layers of KerasHub leave arguments out of their configuration, or put in what their
    constructor does not take. Keras records arguments that are plain values.
    """
    recorded = getattr(operation._auto_config, "config", {})
    try:
        config = operation.get_config()
    except Exception:  # such as an attribute that the layer does not have
        config = {}
    known = {
        name
        for kind in type(operation).__mro__[:-1]
        for name in inspect.signature(vars(kind).get("__init__", object)).parameters
    }
    return {**recorded, **{name: value for name, value in config.items() if name in known}}


def _copy_weights(source: Any, copy: Any) -> None:
    if getattr(copy, "weights", None):
        set_weights(copy, source.get_weights())
