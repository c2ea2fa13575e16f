"""The prefix digest: what decides the activation at a cut, and nothing else.

The digest of a node covers its own description and the digests of its inputs, so one sweep gives
the digest of the graph *up to* every layer. Names, training settings, nesting and what was
built before in the process do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from featurestore.backbone.custom import is_custom, is_keras, is_serialized, layers_of
from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.onnx_graph import OnnxOperation
from featurestore.backbone.tracing import traced_digest
from featurestore.digests import canonical_number, digest_array, digest_fields
from featurestore.errors import BackboneError, one_line

# Settings that decide how weights start and are trained, but not what a layer computes.
_TRAINING = {"seed", "trainable"}
_TRAINING_ENDINGS = ("initializer", "regularizer", "constraint")

# What Keras computes with where a layer or operation does not say.
_DEFAULTS = {"epsilon": 1e-7, "floatx": "float32", "image_data_format": "channels_last"}

# Layers that return their input unchanged outside of training.
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


def graph_digests(graph: Graph, *, training: bool = False) -> list[str]:
    """Return for every node the digest of the graph up to it; names and weights do not count.

    Parameters
    ----------
    graph : Graph
    training : bool
        Digest also what matters only to training: dropout, initializers, regularizers,
        ``trainable`` flags, and which calls share a layer.

    Raises
    ------
    BackboneError
        If a layer has no canonical description, such as a Lambda.
    """
    digests = [digest_fields({"class": "image"})]
    first_calls: dict[int, int] = {}
    for number, node in enumerate(graph.nodes[1:], start=1):
        fields: dict[str, Any] = {
            "inputs": [[digests[parent], output] for parent, output in node.inputs]
        }
        if training:
            fields["layer"] = first_calls.setdefault(id(node.operation), number)
        elif _is_transparent(node):
            digests.append(digests[node.inputs[0][0]])
            continue
        digests.append(digest_fields({**_description(node, training), **fields}))
    return digests


def weight_digests(graph: Graph) -> list[str]:
    """Return for every node the digest of all weights up to it. Each array is read once."""
    own: dict[int, list[str]] = {}
    digests = [digest_fields({"weights": [], "inputs": []})]
    for node in graph.nodes[1:]:
        if _is_transparent(node):
            digests.append(digests[node.inputs[0][0]])
            continue
        key = id(node.operation)
        if key not in own:
            own[key] = [digest_array(array) for array in weight_arrays(node.operation)]
        inputs = [digests[parent] for parent, _ in node.inputs]
        digests.append(digest_fields({"weights": own[key], "inputs": inputs}))
    return digests


def refuse_other_defaults() -> None:
    """Raise BackboneError if Keras has other global settings, which layers may compute with."""
    import keras

    for name, usual in _DEFAULTS.items():
        now = getattr(keras.config, name)()
        if now != usual:
            raise BackboneError(
                f"keras.config.{name}() is {now!r}, which layers may compute with",
                f"{usual!r}",
                f"call keras.config.set_{name}({usual!r}), or correct ~/.keras/keras.json",
            )


def refuse_changes(graph: Graph, digests: list[str]) -> None:
    """Raise BackboneError if a graph no longer computes what its digests say."""
    refuse_other_defaults()
    for node, before, now in zip(graph.nodes, digests, graph_digests(graph), strict=True):
        if before != now:
            raise BackboneError(
                f"the code or settings of layer {node.name!r} changed after the backbone was made",
                remedy="make the backbone again",
            )


def precisions(graph: Graph) -> list[str]:
    """Return for every node the types that compute its activation, such as ``float32``."""
    up_to: list[frozenset[str]] = [frozenset()]
    for node in graph.nodes[1:]:
        # A custom layer may have made layers of other types under a global policy.
        own = {str(getattr(layer, "compute_dtype", None)) for layer in layers_of(node.operation)}
        mine = frozenset(dtype for dtype in own if "float" in dtype)
        up_to.append(mine.union(*(up_to[parent] for parent, _ in node.inputs)))
    return ["+".join(sorted(types)) or "float32" for types in up_to]


def has_nan(operation: Any) -> bool:
    """Whether a layer has a weight that is NaN."""
    import numpy as np

    arrays = map(np.asarray, weight_arrays(operation))
    # By name: NumPy does not count bfloat16 and the like as floating types.
    return any("float" in array.dtype.name and np.isnan(array).any() for array in arrays)


def refuse_nan(nodes: Iterable[Node]) -> None:
    """Raise BackboneError if a weight of some nodes is NaN, which later layers may hide."""
    for node in nodes:
        if has_nan(node.operation):
            raise BackboneError(
                f"layer {node.name!r} has weights that are NaN",
                "numbers",
                "use weights from before the training diverged, or a sound file",
            )


def weight_arrays(operation: Any) -> list[Any]:
    """Return a layer's weights as arrays, in its own order."""
    return operation.get_weights() if getattr(operation, "weights", None) else []


def _is_transparent(node: Node) -> bool:
    # On the image it casts to float; on a later output of a split, the node's digest stands for the
    # first output only.
    return (
        node.kind in _TRANSPARENT
        and is_keras(type(node.operation))
        and node.inputs[0][0] != 0
        and node.inputs[0][1] == 0
    )


def _description(node: Node, training: bool) -> dict[str, Any]:
    """Return what a node computes in canonical JSON form: its settings, or what it traces to."""
    import keras

    try:
        if isinstance(node.operation, keras.layers.Lambda):
            raise BackboneError(
                "is code that no file can hold: replace it by a stock layer, keras.ops or a class"
            )
        if isinstance(node.operation, OnnxOperation):
            return node.operation.description()
        if is_custom(node.operation):
            return {"trace": traced_digest(node)}
        fields = layer_fields(node.operation, training)
        return {**fields, "arguments": canonical_config(node.arguments, training)}
    except BackboneError as error:
        raise BackboneError(f"layer {node.name!r} ({node.kind}) {error}") from None
    except Exception as error:  # whatever get_config raises
        raise BackboneError(
            f"layer {node.name!r} ({node.kind}) has no canonical configuration: {one_line(error)}"
        ) from error


def layer_fields(operation: Any, training: bool = False) -> dict[str, Any]:
    """Return the class and the settings of a layer of Keras in canonical JSON form."""
    import keras

    serial = keras.saving.serialize_keras_object(operation)
    return {"class": serial["class_name"], "config": _settings(serial["config"], training)}


def canonical_config(value: Any, training: bool = False) -> Any:
    """Return a serialized configuration, or the arguments of a call, in canonical JSON form.

    Symbolic tensors all count alike. ``training`` keeps what matters only to training:
    initializers, regularizers, constraints, seeds.

    Raises
    ------
    BackboneError
        If a value has no canonical form.
    """
    import keras
    import numpy as np

    def canonical(part: Any) -> Any:
        return canonical_config(part, training)

    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return canonical_number(value)
    if is_serialized(value):
        return _serialized(value, training)
    if isinstance(value, Mapping):
        # Settings that are None by default are missing in older releases of Keras.
        return {str(key): canonical(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [canonical(part) for part in value]
    if isinstance(value, keras.KerasTensor):
        return {"input": True}
    if isinstance(value, slice):
        return {"slice": canonical([value.start, value.stop, value.step])}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (np.generic, np.ndarray)) or keras.ops.is_tensor(value):
        return {"array": digest_array(np.asarray(keras.ops.convert_to_numpy(value)))}
    raise BackboneError(f"has a setting of type {type(value).__name__}: no canonical form")


def _serialized(part: Mapping[str, Any], training: bool) -> Any:
    """Return a serialized layer, function or other object in canonical JSON form."""
    if part["class_name"] == "DTypePolicy":
        return part["config"]["name"]
    about = {
        key: canonical_config(value, training)
        for key, value in part.items()
        # ``name`` repeats that of the configuration; the build depends on the first images.
        if key not in ("build_config", "config", "name")
    }
    return {**about, "config": _settings(part["config"], training)}


def _settings(config: Any, training: bool) -> Any:
    """Return the settings of a layer or other object of Keras, without what has no effect."""
    if not isinstance(config, Mapping):
        return canonical_config(config, training)
    kept = {
        name: value
        for name, value in config.items()
        if name != "name"
        and (training or not (name in _TRAINING or name.endswith(_TRAINING_ENDINGS)))
    }
    return canonical_config(kept, training)
