"""What a cut costs: parameters and floating-point operations up to each layer.

A multiplication with its addition counts as two operations, for one image, in layers whose work is
a matrix product or a convolution. All others (bias, activation, normalization, pooling, addition,
recurrent layers) count as none. In a layer that is not Keras' own, the layers that its call is made
of count; if Keras cannot call it without values, as if it were a ``Dense`` with all its kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.backbone.custom import is_keras
from featurestore.backbone.graph import Graph, calls
from featurestore.backbone.onnx_graph import OnnxOperation
from featurestore.backbone.opening import inside
from featurestore.table import Grid, Table, size

Shape = tuple[Any, ...]  # (batch, …); None for sizes that are not known
Shapes = Sequence[Shape]
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
    counts = [0]
    for node in graph.nodes[1:]:
        shapes = [tuple(graph.nodes[i].outputs[k].shape) for i, k in node.inputs]
        output = tuple(node.outputs[0].shape)
        counts.append(2 * _multiplications(node.operation, node.arguments, shapes, output))
    return counts


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


def _multiplications(operation: Any, arguments: Any, shapes: Shapes, output: Shape) -> int:
    """Return the multiplications of one call of an operation, for one sample.

    Parameters
    ----------
    operation : keras.Operation
    arguments : (tuple, dict)
        Of the call.
    shapes, output : of the symbolic tensors in the arguments, and of the first output; (batch, …)
    """
    kind, inputs, positions = type(operation).__name__, [shape[1:] for shape in shapes], output[1:]
    if None in positions or any(None in shape for shape in inputs):
        return 0
    if isinstance(operation, OnnxOperation):
        return _of_onnx(operation, inputs, positions)
    if kind == "Matmul":
        return math.prod(positions) * inputs[0][-1]
    if kind in ("Einsum", "EinsumDense"):
        dense = kind == "EinsumDense"
        terms = (operation.equation if dense else operation.subscripts).split("->")[0].split(",")
        sizes = [*shapes, operation.kernel.shape] if dense else shapes
        lengths = {
            axis: length
            for term, shape in zip(terms, sizes, strict=True)
            for axis, length in zip(term.strip(), shape, strict=True)
        }
        return math.prod(length for length in lengths.values() if length is not None)
    if kind == "DotProductAttention":  # (step, head, channel) of query and key
        (steps, heads, width), (times, *_) = inputs[:2]
        return 2 * steps * times * heads * width
    if kind == "MultiHeadAttention":
        query, value, key = (*inputs, inputs[-1])[:3]
        steps, times = math.prod(query[:-1]), math.prod(value[:-1])
        width = operation.num_heads * operation.key_dim
        value_width = operation.num_heads * operation.value_dim
        projections = steps * (query[-1] * width + value_width * positions[-1])
        projections += times * (key[-1] * width + value[-1] * value_width)
        return projections + steps * times * (width + value_width)
    if not is_keras(type(operation)) and (function := inside(operation, arguments, shapes)):
        return sum(
            _multiplications(
                call.operation,
                (call.arguments.args, call.arguments.kwargs),
                [tuple(tensor.shape) for tensor in call.arguments.keras_tensors],
                tuple(call.outputs[0].shape),
            )
            for call in calls(function)
        )
    if kind not in _KERNELS and is_keras(type(operation)):
        return 0
    weights = getattr(operation, "weights", [])
    kernels = [math.prod(weight.shape) for weight in weights if "kernel" in weight.name]
    # A kernel has the channels of one group only, so its size is the work at one position.
    return sum(kernels) * math.prod((inputs[0] if kind.endswith("Transpose") else positions)[:-1])


def _of_onnx(operation: OnnxOperation, inputs: Sequence[Shape], positions: Shape) -> int:
    """Return the multiplications of an operation of ONNX, for one sample."""
    kind, weights = operation.proto.op_type, operation.weights
    if kind in ("Conv", "ConvTranspose") and weights:
        return weights[0].size * math.prod((positions if kind == "Conv" else inputs[0])[:-1])
    if kind in ("Gemm", "MatMul") and weights:
        return math.prod(inputs[0][:-1]) * weights[0].size
    return math.prod(positions) * inputs[0][-1] if kind == "MatMul" else 0
