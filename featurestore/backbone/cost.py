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

# Layers whose kernels are applied once at each position of the output, or of the input.
_KERNELS = {
    *("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D"),
    *("SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose", "Dense"),
}


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


def table(graph: Graph) -> Table[LayerInfo]:
    """Describe the nodes of a graph where you can cut."""
    parameters_to, flops_to = _totals(graph, _parameters(graph)), _totals(graph, flops(graph))
    through, last = graph.bottlenecks(), len(graph.nodes) - 1
    infos = []
    for number in graph.cuts:
        node = graph.nodes[number]
        shape = tuple(node.outputs[0].shape[1:])
        tail = through[number] and number != last
        work = parameters_to[number], flops_to[number]
        infos.append(LayerInfo(node.name, node.kind, shape, *work, 2 * math.prod(shape), tail))
    return Table(infos, layers_layout)


def flops(graph: Graph) -> list[int]:
    """Return the floating-point operations of each node by itself, for one image."""
    return [
        2 * _multiplications(node, [graph.nodes[i].outputs[k].shape[1:] for i, k in node.inputs])
        for node in graph.nodes
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


def _multiplications(node: Node, inputs: Sequence[Sequence[int]]) -> int:
    layer, output = node.operation, node.outputs[0].shape[1:]
    if None in output or any(None in shape for shape in inputs):
        return 0
    if node.kind == "Matmul":
        return math.prod(output) * inputs[0][-1]
    if node.kind == "MultiHeadAttention":
        query, value, key = (*inputs, inputs[-1])[:3]
        steps, times = math.prod(query[:-1]), math.prod(value[:-1])
        width, value_width = layer.num_heads * layer.key_dim, layer.num_heads * layer.value_dim
        projections = steps * (query[-1] * width + value_width * output[-1])
        projections += times * (key[-1] * width + value[-1] * value_width)
        return projections + steps * times * (width + value_width)
    if node.kind not in _KERNELS:
        return 0
    kernels = [math.prod(weight.shape) for weight in layer.weights if "kernel" in weight.name]
    positions = inputs[0] if node.kind.endswith("Transpose") else output
    # A kernel has the channels of one group only, so its size is the work at one position.
    return sum(kernels) * math.prod(positions[:-1])
