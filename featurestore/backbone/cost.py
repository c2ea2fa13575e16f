"""What a cut costs: parameters and floating-point operations up to each layer.

Operations are counted as two for each multiplication with an addition, for one image, in layers
whose work is a matrix product or convolution. All others (bias, activation, normalization, pooling,
addition, recurrent layers) count as none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.backbone.graph import Graph, Node

Shape = tuple


@dataclass(frozen=True)
class LayerInfo:
    """One place where a backbone can be cut.

    Attributes
    ----------
    name, kind : str
        Canonical name, and class of the layer or operation.
    shape : tuple of int
        Of the activation of one sample: (height, width, channel), (token, channel) or (channel,).
    parameters, flops : int
        Of everything up to there, this layer too; ``flops`` for one image.
    bytes : int
        Of one sample's activation as float16.
    tail : bool
        Whether the rest of the network can be trained from this activation alone.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    bytes: int
    tail: bool


def table(
    graph: Graph, shapes: Sequence[Sequence[Shape]], numbers: Sequence[int]
) -> list[LayerInfo]:
    """Describe nodes of a graph.

    Parameters
    ----------
    graph : Graph
        The backbone.
    shapes : sequence of sequence of tuple
        Shape of every output of every node, the batch axis first.
    numbers : sequence of int
        The nodes to describe; each has one output.
    """
    work = [0] + [
        flops(node, [shapes[i][k] for i, k in node.inputs], shapes[number][0])
        for number, node in enumerate(graph.nodes[1:], start=1)
    ]
    parameters_to, flops_to = _totals(graph, parameters(graph)), _totals(graph, work)
    through, last = graph.bottlenecks(), len(graph.nodes) - 1
    return [
        LayerInfo(
            name=graph.nodes[number].name,
            kind=graph.nodes[number].kind,
            shape=shapes[number][0][1:],
            parameters=parameters_to[number],
            flops=flops_to[number],
            bytes=2 * math.prod(shapes[number][0][1:]),
            tail=through[number] and number != last,
        )
        for number in numbers
    ]


def why_no_cut(shapes: Sequence[Shape]) -> str | None:
    """Return why a node with these outputs cannot be cut at; None if it can."""
    if len(shapes) != 1:
        return f"has {len(shapes)} outputs, expected one"
    shape = shapes[0]
    if len(shape) not in (2, 3, 4) or shape[0] is not None or None in shape[1:]:
        return (
            f"gives {shape}, expected (None, height, width, channel), (None, token, channel)"
            " or (None, channel)"
        )
    return None


def _totals(graph: Graph, per_node: Sequence[int]) -> list[int]:
    """Sum a number over each node and all that it needs, each counted once."""
    import numpy as np

    needs = np.zeros((len(graph.nodes), len(graph.nodes)), dtype=bool)
    for number, node in enumerate(graph.nodes):
        for parent, _ in node.inputs:
            needs[number] |= needs[parent]
        needs[number, number] = True
    values = np.asarray(per_node, dtype=np.int64)
    return [int(values[row].sum()) for row in needs]


def parameters(graph: Graph) -> list[int]:
    """Return for each node the number of parameters of its layer; a shared layer counts once."""
    counts, seen = [], set()
    for node in graph.nodes:
        fresh = id(node.operation) not in seen
        seen.add(id(node.operation))
        weights = getattr(node.operation, "weights", None) or []
        counts.append(sum(math.prod(weight.shape) for weight in weights) if fresh else 0)
    return counts


def flops(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    """Return the operations of one node for one image.

    Parameters
    ----------
    node : Node
        The call of a layer or operation.
    inputs : sequence of tuple
        Shape of each tensor that it takes, the batch axis first.
    output : tuple
        Shape of what it gives.
    """
    if not inputs or None in inputs[0][1:] or None in output[1:]:
        return 0
    count = _COUNTS.get(node.kind)
    return 0 if count is None else 2 * count(node.operation, inputs, output)


def _convolution(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    # The kernel holds the channels of one group only, so its size is the work at one position.
    return math.prod(layer.kernel.shape) * math.prod(_spatial(layer, output))


def _separable(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
    return kernels * math.prod(_spatial(layer, output))


def _transposed(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(layer.kernel.shape) * math.prod(_spatial(layer, inputs[0]))


def _dense(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(layer.kernel.shape) * math.prod(inputs[0][1:-1])


def _einsum_dense(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    taken, kernel = layer.equation.split("->")[0].replace(" ", "").split(",")
    # The axes of the input that the kernel does not have repeat the work; "..." stands for the
    # axes in front, so axes are matched from the end.
    repeated = 1
    for letter, size in zip(reversed(taken), reversed(inputs[0]), strict=False):
        if letter == ".":
            break
        if letter not in kernel and size is not None:
            repeated *= size
    if "." in taken:
        named = len(taken.replace(".", ""))
        repeated *= math.prod(size for size in inputs[0][1 : len(inputs[0]) - named] if size)
    return math.prod(layer.kernel.shape) * repeated


def _attention(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    key = inputs[2] if len(inputs) > 2 else value
    config = layer.get_config()
    heads = config.get("num_heads") or config["num_query_heads"]
    narrow = config.get("num_key_value_heads", heads)
    width = config.get("key_dim") or config["head_dim"]
    value_width = config.get("value_dim") or width
    steps, times = math.prod(query[1:-1]), math.prod(value[1:-1])
    projections = (
        steps * query[-1] * heads * width
        + times * key[-1] * narrow * width
        + times * value[-1] * narrow * value_width
        + steps * heads * value_width * output[-1]
    )
    return projections + heads * steps * times * (width + value_width)


def _matmul(operation: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output[1:]) * (inputs[0][-1] or 0)


def _spatial(layer: Any, shape: Shape) -> Shape:
    return shape[2:] if layer.data_format == "channels_first" else shape[1:-1]


_COUNTS = {
    **{f"Conv{rank}D": _convolution for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _transposed for rank in (1, 2, 3)},
    **{f"DepthwiseConv{rank}D": _convolution for rank in (1, 2)},
    **{f"SeparableConv{rank}D": _separable for rank in (1, 2)},
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "GroupedQueryAttention": _attention,
    "Matmul": _matmul,
    "MultiHeadAttention": _attention,
}
