"""A Keras functional model as a flat graph: nested models flattened, order and names fixed.

Keras holds the graph in ``model._nodes_by_depth`` and ``node.arguments``, on which calling and
saving are built. This module is the only one that reads them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from featurestore.backbone.custom import layers_of
from featurestore.backbone.opening import block_class, called, opened
from featurestore.errors import BackboneError, one_line

Tensor = Any
Edge = tuple[int, int]  # a node's number and which of its outputs

# Names of the layers around a backbone in a cut or promoted model.
RESERVED = ("image", "resizing", "scaling_bgr", "scaling", "reduction")
# What TensorFlow takes as the name of a layer.
_GRAPH_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>:-]*")


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one layer or operation.

    Attributes
    ----------
    name : str
        Canonical and unique. The second call of a layer is ``name@2``.
    operation : keras.Operation or None
        None for the input.
    arguments : (tuple, dict)
        Arguments of the call; symbolic tensors mark the places of ``inputs``, in that order.
    inputs : tuple of (int, int)
        Node number and output number of each tensor that it takes.
    outputs : tuple of keras.KerasTensor
        Its outputs when the model was built: shapes and dtypes.
    """

    name: str
    operation: Any
    arguments: tuple[tuple, dict]
    inputs: tuple[Edge, ...]
    outputs: tuple[Tensor, ...]

    @property
    def kind(self) -> str:
        """Class of the layer or operation."""
        return "InputLayer" if self.operation is None else type(self.operation).__name__

    @property
    def is_cut(self) -> bool:
        """Whether you can cut here: at one output of two, three or four axes, of known sizes."""
        shape = tuple(self.outputs[0].shape)
        one = len(self.outputs) == 1 and len(shape) in (2, 3, 4)
        return one and shape[0] is None and None not in shape[1:]


def at_inference(node: Node) -> Callable:
    """Return the call of a node's operation outside of training.

    A layer without the argument may hold one whose default is training, such as ``Resizing``.
    """
    import keras

    operation = node.operation
    if not isinstance(operation, keras.Layer):
        return operation
    return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})


class Graph:
    """A flat graph of one image input, in the order in which Keras lists a model's layers.

    Parameters
    ----------
    nodes : sequence of Node
        The input first; each after all that it takes.
    outputs : sequence of (int, int)
        The model's outputs.
    """

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[Edge]) -> None:
        self.nodes = tuple(nodes)
        self.outputs = tuple(outputs)
        # Copies whose layers compute in another precision, once they are used.
        self.recasts: dict[str, Graph] = {}

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Node number of each canonical name, without the input's."""
        return {node.name: i for i, node in enumerate(self.nodes) if node.operation is not None}

    @cached_property
    def cuts(self) -> list[int]:
        """Numbers of the nodes where you can cut."""
        nodes = enumerate(self.nodes)
        return [number for number, node in nodes if number and node.is_cut]

    @cached_property
    def layer_names(self) -> dict[int, str]:
        """Canonical name of each layer and operation, by ``id``."""
        names: dict[int, str] = {}
        for node in self.nodes[1:]:
            names.setdefault(id(node.operation), node.name)
        return names

    def ancestors(self, wanted: Iterable[int], start: int = 0) -> list[int]:
        """Return the numbers of the wanted nodes and of all that they need, in order.

        The search ends at the node ``start``, which every path to the wanted ones leads through.
        """
        needed = set(wanted)
        for number in range(len(self.nodes) - 1, start, -1):
            if number in needed:
                needed.update(parent for parent, _ in self.nodes[number].inputs)
        return sorted(needed)

    def bottlenecks(self, ends: Iterable[int] | None = None) -> list[bool]:
        """Return for each node whether every path from the input to some nodes leads through it.

        ``ends`` are by default the outputs. In topological order, this holds if no edge leaps over
        the node: such an edge is part of a path around it. Building a model to try each layer takes
        minutes for a NASNet.
        """
        ends = [number for number, _ in self.outputs] if ends is None else list(ends)
        furthest: dict[int, int] = {}
        needed = self.ancestors(ends)
        for number in needed:
            for parent, _ in self.nodes[number].inputs:
                furthest[parent] = number
        furthest |= dict.fromkeys(ends, len(self.nodes))
        verdicts, reach = [False] * len(self.nodes), 0
        for number in needed:
            verdicts[number] = reach <= number
            reach = max(reach, furthest[number])
        return verdicts

    def run(
        self,
        inputs: Tensor,
        wanted: Sequence[int],
        call: Callable[[Node], Callable] = at_inference,
        start: int = 0,
    ) -> list[list[Tensor]]:
        """Compute nodes on a tensor, real or symbolic; return the outputs of each wanted node.

        ``inputs`` are scaled images (batch, height, width, channel=3), or the activation of the
        node ``start``, which every path to the wanted nodes leads through. ``call`` gives what to
        call for each node, by default its operation, outside of training.
        """
        import keras

        values: dict[int, list[Tensor]] = {start: [inputs]}
        needed = [number for number in self.ancestors(wanted, start) if number != start]
        last_use = {parent: number for number in needed for parent, _ in self.nodes[number].inputs}
        for number in needed:
            node = self.nodes[number]
            tensors = [values[parent][output] for parent, output in node.inputs]
            values[number] = keras.tree.flatten(called(call(node), node.arguments, tensors))
            # All tensors of a deep network would fill the memory.
            for parent, _ in node.inputs:
                if last_use[parent] == number and parent not in wanted:
                    values.pop(parent, None)
        return [values[number] for number in wanted]

    def sized(self, input_size: tuple[int, int]) -> Graph:
        """Return this graph with the outputs that its nodes have for images of one size."""
        import keras

        image = self.nodes[0].outputs[0]
        shapes = [output.shape for node in self.nodes for output in node.outputs]
        if tuple(image.shape[1:3]) == input_size and not any(None in s[1:] for s in shapes):
            return self
        image = keras.KerasTensor((None, *input_size, 3), dtype=image.dtype)
        try:
            outputs = self.run(
                image, range(len(self.nodes)), lambda node: node.operation.compute_output_spec
            )
        except Exception as error:  # whatever a layer raises on a size that it cannot take
            height, width = input_size
            raise BackboneError(
                f"the network does not take images of {height}×{width}: {one_line(error)}",
                remedy="give another input size",
            ) from error
        pairs = zip(self.nodes, outputs, strict=True)
        return Graph([replace(node, outputs=tuple(own)) for node, own in pairs], self.outputs)


def flatten(model: Any) -> Graph:
    """Dissolve a functional model of images, and all models nested in it, into one graph.

    The model is only read.

    Raises
    ------
    BackboneError
        If it is not functional, does not take one image, or keeps state between calls.
    """
    graph = dissolve(model)
    for node in graph.nodes[1:]:
        _refuse_unsupported(node)
    shape = tuple(graph.nodes[0].outputs[0].shape)
    if len(shape) != 4 or shape[3] != 3:
        raise BackboneError(
            f"model {model.name!r} takes an input of shape {shape}",
            "an RGB image: (None, height, width, 3)",
        )
    return graph


def _refuse_unsupported(node: Node) -> None:
    """Raise BackboneError for a node with which a network cannot be a backbone."""
    layers = layers_of(node.operation)

    def settings(name: str) -> list[Any]:
        return [getattr(layer, name, None) for layer in layers]

    masked = any(getattr(output, "_keras_mask", None) is not None for output in node.outputs)
    named = _GRAPH_NAME.fullmatch(node.operation.name)
    name = "Latin letters and digits, not beginning with an underscore: layer.name = …"
    for refused, reason, expected in (
        (any(settings("stateful")), "is stateful: it depends on earlier images", "stateful=False"),
        ("channels_first" in settings("data_format"), "computes channels_first", "channels_last"),
        (any(settings("quantization_mode")), "is quantized", "one that is not yet quantized"),
        (masked, "gives a mask, which stored features do not have", "a network without masks"),
        (not named, "has a name that TensorFlow cannot compile", name),
    ):
        if refused:
            raise BackboneError(f"layer {node.name!r} ({node.kind}) {reason}", expected)


def dissolve(model: Any) -> Graph:
    """Dissolve a functional model of one input, whatever its shape; see :func:`flatten`."""
    functional = as_functional(model)
    if functional is None:
        raise BackboneError(
            f"model {model.name!r} is a {type(model).__name__} that is not functional",
            "a model of layers called on keras.Input",
        )
    if len(functional.inputs) != 1:
        names = ", ".join(repr(tensor.name) for tensor in functional.inputs)
        raise BackboneError(
            f"model {model.name!r} takes {len(functional.inputs)} inputs: {names}",
            "one image",
            "pass the part of the model that takes the image",
        )
    flattener = _Flattener(functional.inputs[0])
    outputs = flattener.dissolve(functional, [(0, 0)], ())
    return flattener.graph([flattener.single(edge) for edge in outputs])


def as_functional(operation: Any) -> Any | None:
    """Return the functional model behind a layer, or None if it is an ordinary layer."""
    from keras.src.models.functional import Functional
    from keras.src.models.sequential import Sequential

    if isinstance(operation, Sequential):
        return operation._functional
    # A subclass may compute something else than its graph.
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


class _Flattener:
    def __init__(self, image: Tensor) -> None:
        self.nodes = [Node("image", None, ((), {}), (), (image,))]
        self.paths: dict[int, tuple[str, ...]] = {}
        # Names of blocks, which count from 1 within the layer that holds them.
        self.blocks: dict[int, str] = {}

    def dissolve(self, model: Any, inputs: list[Edge], path: tuple[str, ...]) -> list[Edge]:
        """Append a model's nodes, given the edges of its inputs; return those of its outputs."""
        edges = {id(tensor): edge for tensor, edge in zip(model.inputs, inputs, strict=True)}
        for call in calls(model):
            taken = [edges[id(tensor)] for tensor in call.arguments.keras_tensors]
            inner = as_functional(call.operation)
            name = call.operation.name
            if inner is not None:
                outputs = self.dissolve(inner, taken, (*path, name))
            elif (kind := block_class(call.operation)) and (inner := opened(call)):
                blocks = [block for block in inner.operations if type(block) is kind]
                width = max(2, len(str(len(blocks))))
                for number, block in enumerate(blocks, start=1):
                    self.blocks[id(block)] = f"block_{number:0{width}}"
                outputs = self.dissolve(inner, taken, (*path, f"{name}/"))
            else:
                outputs = self._append(call, taken, path)
            edges.update(zip(map(id, call.outputs), outputs, strict=True))
        return [edges[id(tensor)] for tensor in model.outputs]

    def _append(self, call: Any, taken: list[Edge], path: tuple[str, ...]) -> list[Edge]:
        import keras

        kwargs = dict(call.arguments.kwargs)
        # Some layers record their default, True, there. ``predict`` overrides it, and so do we.
        kwargs.pop("training", None)
        arguments = keras.tree.map_structure(_as_now, (call.arguments.args, kwargs))
        self.nodes.append(Node("", call.operation, arguments, tuple(taken), tuple(call.outputs)))
        self.paths.setdefault(id(call.operation), path)
        return [(len(self.nodes) - 1, output) for output in range(len(call.outputs))]

    def single(self, edge: Edge) -> Edge:
        """Return an output of the model as the only output of a node, so that you can cut there."""
        import keras

        node = self.nodes[edge[0]]
        if len(node.outputs) == 1:
            return edge
        tensor = node.outputs[edge[1]]
        layer = keras.layers.Identity(name=f"output_{edge[1]}" if edge[1] else "output")
        output = keras.KerasTensor(tensor.shape, tensor.dtype)
        self.nodes.append(Node("", layer, ((tensor,), {}), (edge,), (output,)))
        self.paths[id(layer)] = (f"{node.operation.name}/",)
        return len(self.nodes) - 1, 0

    def graph(self, outputs: list[Edge]) -> Graph:
        """Order the nodes as Keras orders layers, drop those no output needs, and name them."""
        order = _keras_order(self.nodes, outputs)
        place = {old: new for new, old in enumerate(order)}
        nodes = [self.nodes[old] for old in order]
        operations = {id(node.operation): node.operation for node in nodes[1:]}
        names = canonical_names(
            [(own, self.paths[key]) for key, own in operations.items()], self.blocks
        )
        name_of = dict(zip(operations, names, strict=True))
        calls: Counter[int] = Counter()
        named = nodes[:1]
        for node in nodes[1:]:
            key = id(node.operation)
            calls[key] += 1
            name = name_of[key] if calls[key] == 1 else f"{name_of[key]}@{calls[key]}"
            inputs = tuple((place[parent], output) for parent, output in node.inputs)
            named.append(replace(node, name=name, inputs=inputs))
        return Graph(named, [(place[number], output) for number, output in outputs])


def _as_now(argument: Any) -> Any:
    """Return an argument as it is now: arrays and variables may be changed later."""
    import keras
    import numpy as np

    if isinstance(argument, keras.Variable) or hasattr(argument, "assign"):
        return np.array(keras.ops.convert_to_numpy(argument))
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def calls(model: Any) -> list[Any]:
    """Return the Keras nodes of one model, nested models whole, each after all that it takes."""
    place = {id(operation): number for number, operation in enumerate(model.operations)}
    by_depth = model._nodes_by_depth
    calls = [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in sorted(by_depth[depth], key=lambda node: place[id(node.operation)])
    ]
    return [node for node in calls if not node.is_input]


def _keras_order(nodes: Sequence[Node], outputs: Sequence[Edge]) -> list[int]:
    """Return the numbers of the needed nodes, furthest from the outputs first.

    Keras orders ``model.layers`` like this, so that "the last 3 layers" are the same ones.
    """
    depth = {number: 0 for number, _ in outputs}
    for number in range(len(nodes) - 1, 0, -1):
        if number in depth:
            for parent, _ in nodes[number].inputs:
                depth[parent] = max(depth.get(parent, 0), depth[number] + 1)
    depth[0] = max(depth.values(), default=0) + 1
    return sorted(depth, key=lambda number: (-depth[number], number))


def canonical_names(
    operations: Sequence[tuple[Any, tuple[str, ...]]], blocks: Mapping[int, str] = {}
) -> list[str]:
    """Name every layer and operation of a flat graph, whatever was built before in the process.

    Keras numbers layers without a name of their own (``conv2d_94``) through the whole process, so
    that the second InceptionV3 of a process names its layers differently from the first. Here they
    are ranked by that number within their class, which gives the names of a fresh process.

    Operations come in order, each once, with the names of the models that it is nested in,
    outermost first. Names that the user chose stay; if two nested models use the same one, the
    later layer gets the name of its model in front: ``classifier.dense_in``. Sub-layers of an
    opened layer, whose name ends in a slash, always have it in front: ``encoder/block_07``, where
    ``blocks`` gives the names of its blocks by ``id``. A name that a cut
    model uses itself (``resizing``) gets a number: ``resizing_2``. A colon, which separates the
    reduction in a layer ref, becomes an underscore.
    """
    ranked: dict[str, list[tuple[int, int]]] = defaultdict(list)
    names: list[str] = []
    for position, (operation, _) in enumerate(operations):
        names.append(blocks.get(id(operation), operation.name))
        automatic = is_automatic(operation.name, type(operation).__name__)
        if automatic and id(operation) not in blocks:
            ranked[automatic[1]].append((int(automatic[2] or 0), position))
    for stem, members in ranked.items():
        for rank, (_, position) in enumerate(sorted(members)):
            names[position] = f"{stem}_{rank}" if rank else stem
    taken = set(RESERVED)
    for position, (_, path) in enumerate(operations):
        names[position] = "".join(part for part in path if part.endswith("/")) + names[position]
        names[position] = _free_name(names[position].replace(":", "_"), path, taken)
        taken.add(names[position])
    return names


def is_automatic(name: Any, kind: str) -> re.Match[str] | None:
    """Match a name, of its stem and a number, that Keras may have given to an object of a class."""
    from keras.src.utils.naming import to_snake_case

    return re.fullmatch(rf"({re.escape(to_snake_case(kind))})(?:_(\d+))?", str(name))


def _free_name(name: str, path: tuple[str, ...], taken: set[str]) -> str:
    if name not in taken:
        return name
    # The automatic number of the nested model depends on what was built before.
    plain = (re.sub(r"^(functional|sequential|model)(_\d+)?$", r"\1", model) for model in path)
    name = ".".join((*plain, name))
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free
