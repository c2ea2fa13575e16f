"""How a model that was handed in wants its pixels, where the model itself shows it.

Two kinds of evidence count: the graph begins by scaling pixels of 0 to 255, or it begins with a
network of ``keras.applications`` that is known by its name or by its layers' names. Without
either, the caller has to say: a wrong guess would be silent.
"""

from __future__ import annotations

from typing import Any

from featurestore.backbone.families import Application, recognise
from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.identity import weight_arrays
from featurestore.backbone.preprocessing import SCALINGS, Preprocessing, Size, size_pair
from featurestore.errors import BackboneError

# They keep the range of the pixels, so evidence may stand behind them.
_KEEPS_RANGE = {
    "Cast",
    "CenterCrop",
    "Dropout",
    "Flip",
    "GaussianNoise",
    "GetItem",
    "Identity",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
    "Resizing",
    "Stack",
}
_SUMS = {"Add", "Subtract"}
_FACTORS = {"Divide", "Multiply", "TrueDivide"}
# Between what is done to pixels of 0 to 1 (at most a factor of some 4, a mean of some 0.5) and
# what is done to pixels of 0 to 255 (1/128, 1/255, a mean of some 110).
_LARGE = 32.0


def settle(
    graph: Graph,
    model_name: str,
    input_size: Size | None,
    scaling: str | None,
    resize: str,
    interpolation: str,
) -> Preprocessing:
    """Settle the preprocessing of a model that was handed in, from what it shows and what is said.

    Parameters
    ----------
    graph, model_name : Graph, str
        The model.
    input_size, scaling : optional
        What the caller said.
    resize, interpolation : str
        The caller's choice.

    Raises
    ------
    BackboneError
        If the two leave something open, or contradict each other.
    """
    networks: list[Application] = []
    if scaling is None:
        scaling, networks = scaling_of(graph, model_name)
    height, width = graph.nodes[0].outputs[0].shape[1:3]
    sizes = {(network.size, network.size) for network in networks}
    default = _resized_inside(graph) or (sizes.pop() if len(sizes) == 1 else None)
    wanted = None if input_size is None else size_pair(input_size)
    if wanted is None and None in (height, width) and not default:
        raise BackboneError(
            f"model {model_name!r} takes images of any size: say which with --input-size N"
        )
    size = wanted or tuple(
        fixed or open_ for fixed, open_ in zip((height, width), default or (0, 0), strict=True)
    )
    if any(fixed not in (None, side) for fixed, side in zip((height, width), size, strict=True)):
        raise BackboneError(
            f"model {model_name!r} takes images of {height}×{width}; found --input-size"
            f" {size[0]}×{size[1]}"
        )
    return Preprocessing((int(size[0]), int(size[1])), resize, interpolation, scaling)


def scaling_of(graph: Graph, model_name: str) -> tuple[str, list[Application]]:
    """Return a model's scaling, and the applications that it may have been built as, if any.

    Raises
    ------
    BackboneError
        If the model does not show it.
    """
    if "int" in str(graph.nodes[0].outputs[0].dtype):
        return "none", []  # whole numbers are pixels as they come
    first = _first_nodes(graph)
    changes = [node for node in first if _changes_range(node)]
    if changes:
        if all(_takes_bytes(node) for node in changes):
            return "none", []
        found = f"its first layer {changes[0].name!r} scales, but not clearly from 0 to 255"
    else:
        layers = {node.name for node in graph.nodes[1:]}
        if len(first) == 1:
            networks = recognise(first[0].name, first[0].path, model_name, layers)
            if networks:
                return networks[0].scaling, networks
        found = "the graph does not scale them, and it is not a known keras.applications network"
    raise BackboneError(
        f"model {model_name!r} does not show how it wants its pixels: {found}; say it with"
        f" --scaling {'|'.join(SCALINGS)}"
    )


def _resized_inside(graph: Graph) -> tuple[int, int] | None:
    """Return (height, width) where the graph begins by resizing, as a promoted model does."""
    children = _children(graph)
    for number in children[0]:
        operation = graph.nodes[number].operation
        if graph.nodes[number].kind == "Resizing":
            return int(operation.height), int(operation.width)
    return None


def _children(graph: Graph) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in graph.nodes]
    for number, node in enumerate(graph.nodes):
        for parent, _ in node.inputs:
            children[parent].append(number)
    return children


def _first_nodes(graph: Graph) -> list[Node]:
    """Return the first nodes on each way from the image that may change its range."""
    children, found, seen, waiting = _children(graph), [], set(), [0]
    while waiting:
        for number in children[waiting.pop(0)]:
            if number in seen:
                continue
            seen.add(number)
            node = graph.nodes[number]
            if node.kind in _KEEPS_RANGE or _only_casts(node):
                waiting.append(number)
            else:
                found.append(node)
    return found


def _only_casts(node: Node) -> bool:
    if node.kind != "Rescaling":
        return False
    return node.operation.scale == 1.0 and node.operation.offset == 0.0


def _changes_range(node: Node) -> bool:
    return node.kind in _SUMS | _FACTORS | {"Normalization", "Rescaling"}


def _takes_bytes(node: Node) -> bool:
    """Tell whether a scaling step makes sense on pixels of 0 to 255 only."""
    import numpy as np

    operation = node.operation
    if node.kind == "Rescaling":
        return bool(np.max(np.abs(operation.scale)) <= 1 / _LARGE)
    if node.kind == "Normalization":
        mean = operation.input_mean
        if mean is None:
            mean = weight_arrays(operation)[0]
        return bool(np.max(np.abs(mean)) >= _LARGE)
    constants = [abs(value) for value in _constants(node)]
    if not constants:
        return False
    if node.kind == "Multiply":
        return max(constants) <= 1 / _LARGE
    return max(constants) >= _LARGE


def _constants(node: Node) -> list[float]:
    import keras
    import numpy as np

    values: list[float] = []
    for leaf in keras.tree.flatten(node.arguments):
        if isinstance(leaf, keras.KerasTensor) or leaf is None or isinstance(leaf, (str, bool)):
            continue
        array: Any = np.asarray(leaf, dtype=float)
        values.extend(array.reshape(-1).tolist())
    return values
