"""What a cut costs: parameters and floating-point operations up to each layer.

A multiplication with its addition counts as two operations, for one image, in layers whose work is
a matrix product or a convolution. All others (bias, activation, normalization, pooling, addition,
recurrent layers) count as none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.backbone.graph import Graph, Node
from featurestore.table import Grid, Table, size

Shape = tuple


@dataclass(frozen=True)
class LayerInfo:
    """One layer where a backbone can be cut.

    Attributes
    ----------
    name, kind : str
        Canonical name, and class of the layer or operation.
    shape : tuple of int
        Of one sample's activation: (height, width, channel), (token, channel) or (channel,).
    parameters, flops : int
        From the image up to this layer and including it; ``flops`` for one image.
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
) -> Table[LayerInfo]:
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
    work = flops(graph, shapes)
    parameters_to, flops_to = _totals(graph, _parameters(graph)), _totals(graph, work)
    through, last = graph.bottlenecks(), len(graph.nodes) - 1
    infos = [
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
    return Table(infos, layers_layout)


def flops(graph: Graph, shapes: Sequence[Sequence[Shape]]) -> list[int]:
    """Return the floating-point operations of each node by itself, for one image."""
    return [
        _flops(node, [shapes[i][k] for i, k in node.inputs], shapes[number][0])
        for number, node in enumerate(graph.nodes)
    ]


def layers_layout(rows: list[dict[str, Any]]) -> Iterator[Grid]:
    """Show the layers of a backbone."""
    yield Grid(
        [
            {**row, "operations": size(row["flops"], "FLOP"), "size": size(row["bytes"])}
            for row in rows
        ],
        ["name", "kind", "shape", "parameters", "operations", "size", "tail"],
        {"name": "layer", "kind": "class", "operations": "FLOPs", "size": "bytes/sample"},
    )


def why_no_cut(shapes: Sequence[Shape]) -> str | None:
    """Return why you cannot cut at a node with these outputs; None if you can."""
    if len(shapes) != 1:
        return f"has {len(shapes)} outputs, expected one"
    shape = shapes[0]
    if len(shape) not in (2, 3, 4) or shape[0] is not None or None in shape[1:]:
        return (
            f"gives {shape}, expected (None, height, width, channel), (None, token, channel)"
            " or (None, channel)"
        )
    return None


def _parameters(graph: Graph) -> list[int]:
    """Return for each node the number of parameters of its layer; a shared layer counts once."""
    counts, seen = [], set()
    for node in graph.nodes:
        first_call = id(node.operation) not in seen
        seen.add(id(node.operation))
        weights = getattr(node.operation, "weights", None) or []
        counts.append(sum(math.prod(weight.shape) for weight in weights) if first_call else 0)
    return counts


def _totals(graph: Graph, per_node: Sequence[int]) -> list[int]:
    """Sum a number over each node and all that it needs, each counted once."""
    needs = np.zeros((len(graph.nodes), len(graph.nodes)), dtype=bool)
    for number, node in enumerate(graph.nodes):
        for parent, _ in node.inputs:
            needs[number] |= needs[parent]
        needs[number, number] = True
    values = np.asarray(per_node, dtype=np.int64)
    return [int(values[row].sum()) for row in needs]


def _flops(node: Node, inputs: Sequence[Shape], output: Shape) -> int:
    if not inputs or None in inputs[0][1:] or None in output[1:]:
        return 0
    count = _COUNTS.get(node.kind)
    return 0 if count is None else 2 * count(node.operation, inputs, output)


def _convolution(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    # The kernel holds the channels of one group only, so its size is the work at one position.
    return math.prod(layer.kernel.shape) * _positions(layer, output)


def _separable(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
    return kernels * _positions(layer, output)


def _transposed(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(layer.kernel.shape) * _positions(layer, inputs[0])


def _dense(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(layer.kernel.shape) * math.prod(inputs[0][1:-1])


def _attention(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    query, value, key = (*inputs, inputs[-1])[:3]
    steps, times = math.prod(query[1:-1]), math.prod(value[1:-1])
    width = layer.num_heads * layer.key_dim
    value_width = layer.num_heads * layer.value_dim
    projections = steps * (query[-1] * width + value_width * output[-1])
    projections += times * (key[-1] * width + value[-1] * value_width)
    return projections + steps * times * (width + value_width)


def _matmul(operation: Any, inputs: Sequence[Shape], output: Shape) -> int:
    return math.prod(output[1:]) * (inputs[0][-1] or 0)


def _positions(layer: Any, shape: Shape) -> int:
    return math.prod(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])


_COUNTS = {
    **{f"Conv{rank}D": _convolution for rank in (1, 2)},
    **{f"Conv{rank}DTranspose": _transposed for rank in (1, 2)},
    **{f"DepthwiseConv{rank}D": _convolution for rank in (1, 2)},
    **{f"SeparableConv{rank}D": _separable for rank in (1, 2)},
    "Dense": _dense,
    "Matmul": _matmul,
    "MultiHeadAttention": _attention,
}
