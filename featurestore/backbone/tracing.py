"""The identity of a layer with code that is not Keras' own: the computation that it traces to.

TensorFlow's graph of one call is a set of operations with attributes and constants. Its canonical
digest covers these by content. Names, comments, the order in which operations were created, and
code that computes the same do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featurestore.backbone.graph import Node, at_inference
from featurestore.backbone.opening import called, symbolic
from featurestore.digests import digest_array, digest_bytes, digest_fields
from featurestore.errors import BackboneError, one_line

# Attributes that say where and under which name an operation is kept, not what it computes.
_WITHOUT_EFFECT = {"container", "shared_name", "debug_name"}


def traced_digest(node: Node) -> str:
    """Return the digest of what a node computes from its inputs and weights, outside of training.

    Weights count by their position and shape; their values are not covered.

    Raises
    ------
    BackboneError
        If TensorFlow cannot trace it, or its graph calls Python code or reads a table.
    """
    import keras
    import tensorflow as tf

    operation = node.operation
    variables = list(getattr(operation, "variables", []))

    def call(tensors: list[Any], values: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return keras.tree.flatten(called(at_inference(node), node.arguments, tensors))

    specifications = [
        [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
        for tensors in (symbolic(node.arguments), variables)
    ]
    try:
        function = tf.function(call, autograph=False).get_concrete_function(*specifications)
    except Exception as error:  # whatever the user's code raises
        raise BackboneError(f"cannot be traced by TensorFlow: {one_line(error)}") from error
    graph, captured = function.graph, function.captured_inputs
    # Of variables of TensorFlow that a layer reads beside its weights, the values count.
    own = {id(variable.handle): variable for variable in graph.variables}
    return _graph_digest(graph, [own.get(id(value), value) for value in captured])


def _graph_digest(graph: Any, captured: Any) -> str:
    """Return the digest of the outputs of a graph, whose last inputs are captured values."""
    first = len(graph.inputs) - len(captured)
    values = dict(zip((tensor.op.name for tensor in graph.inputs[first:]), captured, strict=True))
    places = {tensor.op.name: place for place, tensor in enumerate(graph.inputs[:first])}
    digests: dict[str, str] = {}
    for operation in graph.get_operations():  # each after all that it takes
        if operation.name in values:
            fields: Any = {"constant": _constant(values[operation.name])}
        elif operation.name in places:
            fields = {"input": places[operation.name]}
        else:
            fields = _fields(graph, operation)
            fields["inputs"] = [_edge(tensor, digests) for tensor in operation.inputs]
        digests[operation.name] = digest_fields(fields)
    return digest_fields({"outputs": [_edge(tensor, digests) for tensor in graph.outputs]})


def _edge(tensor: Any, digests: dict[str, str]) -> list[Any]:
    return [digests[tensor.op.name], tensor.value_index]


def _constant(value: Any) -> str:
    """Return the digest of a captured value; BackboneError for a resource, such as a table."""
    if value.dtype.name in ("resource", "variant"):
        raise BackboneError("reads a table or another resource of TensorFlow", "weights, constants")
    return _array_digest(value.numpy())


def _array_digest(value: Any) -> str:
    array = np.asarray(value)
    return (
        digest_bytes(repr(array.tolist()).encode())
        if array.dtype.hasobject
        else digest_array(array)
    )


def _fields(graph: Any, operation: Any) -> dict[str, Any]:
    if "PyFunc" in operation.type:
        raise BackboneError(
            "calls Python code while it computes, which has no canonical form",
            remedy="compute with keras.ops",
        )
    if operation.type == "Const":
        from tensorflow import make_ndarray

        return {"constant": _array_digest(make_ndarray(operation.get_attr("value")))}
    return {"type": operation.type, "attributes": dict(_attributes(graph, operation))}


def _attributes(graph: Any, operation: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an operation; functions, such as branches, by their content."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

    for name, value in sorted(operation.node_def.attr.items()):
        if name.startswith("_") or name in _WITHOUT_EFFECT:
            continue
        kind = value.WhichOneof("value")
        names = [value.func.name] if kind == "func" else [item.name for item in value.list.func]
        if names:
            definitions = [graph._get_function(inner).cached_definition for inner in names]
            yield name, [_graph_digest(function_def_to_graph(each), []) for each in definitions]
        else:
            yield name, digest_bytes(value.SerializeToString(deterministic=True))
