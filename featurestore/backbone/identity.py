"""The prefix digest: what decides the activation at a cut, and nothing else.

Each node's digest is made of its own description and the digests of what it takes, so one sweep
gives the digest of the graph *up to* every layer. Names, training settings, how the model was
nested and what was built before in the process never enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from featurestore.backbone.code import code_digest
from featurestore.backbone.foreign import (
    is_foreign,
    is_keras,
    refuse_hidden_functions,
    registered,
)
from featurestore.backbone.graph import Graph, Node
from featurestore.digests import canonical_number, digest_array, digest_fields
from featurestore.errors import BackboneError, one_line

# Settings that change how weights come about, or how a layer is called, but not what it computes.
_IGNORED = {"name", "trainable", "seed", "build_config"}
_IGNORED_ENDINGS = ("initializer", "regularizer", "constraint")

# Layers that hand on their input unchanged outside of training.
_TRANSPARENT = {
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
}


def graph_digests(graph: Graph) -> list[str]:
    """Return for every node the digest of the graph up to it.

    Raises
    ------
    BackboneError
        If a layer has no canonical description (Lambda, unregistered code of the user's).
    """
    digests = [digest_fields({"class": "image"})]
    for node in graph.nodes[1:]:
        inputs = [[digests[parent], output] for parent, output in node.inputs]
        if _transparent(node):
            digests.append(digests[node.inputs[0][0]])
            continue
        digests.append(digest_fields({**_description(node), "inputs": inputs}))
    return digests


def weight_digests(graph: Graph) -> list[str]:
    """Return for every node the digest of all weights up to it. Each array is read once."""
    own: dict[int, list[str]] = {}
    digests = [digest_fields({"weights": [], "inputs": []})]
    for node in graph.nodes[1:]:
        if _transparent(node):
            digests.append(digests[node.inputs[0][0]])
            continue
        key = id(node.operation)
        if key not in own:
            own[key] = [digest_array(array) for array in weight_arrays(node.operation)]
        inputs = [digests[parent] for parent, _ in node.inputs]
        digests.append(digest_fields({"weights": own[key], "inputs": inputs}))
    return digests


def precisions(graph: Graph) -> list[str]:
    """Return for every node the types that were computed with up to it, as ``float32``."""
    up_to: list[frozenset[str]] = [frozenset()]
    for node in graph.nodes[1:]:
        own = getattr(node.operation, "compute_dtype", None)
        mine = frozenset([str(own)] if own and "float" in str(own) else [])
        up_to.append(mine.union(*(up_to[parent] for parent, _ in node.inputs)))
    return ["+".join(sorted(types)) or "float32" for types in up_to]


def refuse_nan(graph: Graph, numbers: Iterable[int]) -> None:
    """Raise where a weight of some nodes is NaN, which later layers may hide.

    TensorFlow's max-pooling, for one, passes NaN over.
    """
    import numpy as np

    for number in numbers:
        node = graph.nodes[number]
        for array in map(np.asarray, weight_arrays(node.operation)):
            # By name: NumPy does not count bfloat16 and the like as floating types.
            if "float" in array.dtype.name and np.isnan(array).any():
                raise BackboneError(
                    f"layer {node.name!r} has weights that are NaN, expected numbers: use weights"
                    " from before the training diverged, or a sound file"
                )


def weight_arrays(operation: Any) -> list[Any]:
    """Return a layer's weights as arrays, in its own order."""
    return operation.get_weights() if getattr(operation, "weights", None) else []


def _transparent(node: Node) -> bool:
    """Whether a node hands on its input as it is: Keras' own dropout and the like."""
    # One that sits right on the image still turns it into float, so it counts; so does one on a
    # later output of a node, whose digest stands for the first.
    return (
        node.kind in _TRANSPARENT
        and is_keras(type(node.operation))
        and node.inputs[0][0] != 0
        and node.inputs[0][1] == 0
    )


def _description(node: Node) -> dict[str, Any]:
    """Return a node's class, settings and constant arguments in canonical JSON form."""
    import keras

    operation = node.operation
    if isinstance(operation, keras.layers.Lambda):
        raise BackboneError(
            f"layer {node.name!r} is a Lambda, whose code has no canonical form: replace it by a"
            " stock layer or by keras.ops"
        )
    try:
        refuse_hidden_functions(operation)
        serial = keras.saving.serialize_keras_object(operation)
        description = {
            "class": serial.get("registered_name") or serial["class_name"],
            "config": _canonical(serial["config"]),
            "arguments": _arguments(node),
        }
        if not is_keras(type(operation)):
            registered(serial)
            description["code"] = code_digest(type(operation))
        return description
    except BackboneError as error:
        raise BackboneError(f"layer {node.name!r} ({node.kind}) {error}") from None
    except Exception as error:  # whatever get_config raises
        raise BackboneError(
            f"layer {node.name!r} ({node.kind}) has no canonical configuration: {one_line(error)}"
        ) from error


def _canonical(value: Any) -> Any:
    """Return a serialized configuration without what does not decide the activation."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "DTypePolicy":
            return value["config"]["name"]
        lambda_ = set(value) == {"value"} and isinstance(value["value"], tuple)
        if lambda_ or value.get("class_name") == "__lambda__":
            raise BackboneError("uses a lambda, which has no canonical form: use keras.ops")
        plain = {
            str(key): _canonical(each)
            for key, each in value.items()
            # A setting that is None is one that an older Keras may not have had.
            if each is not None and key not in _IGNORED and not str(key).endswith(_IGNORED_ENDINGS)
        }
        if is_foreign(value):
            plain["code"] = code_digest(registered(value))
        return plain
    if isinstance(value, (list, tuple)):
        return [_canonical(each) for each in value]
    return _plain(value)


def _arguments(node: Node) -> list[Any]:
    args, kwargs = node.arguments
    named = {key: value for key, value in kwargs.items() if value is not None}
    return [_argument(args), _argument(named)]


def _argument(value: Any) -> Any:
    import keras

    if isinstance(value, keras.KerasTensor):
        return {"input": True}  # which one: "inputs" says, in the same order
    if isinstance(value, slice):
        return {"slice": [_argument(each) for each in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, Mapping):
        return {str(key): _argument(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_argument(each) for each in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    import keras
    import numpy as np

    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return canonical_number(value)
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        return {"array": digest_array(np.asarray(keras.ops.convert_to_numpy(value)))}
    if isinstance(value, np.dtype):
        return value.name
    raise BackboneError(f"has a setting of type {type(value).__name__}: no canonical form")
