"""A Keras functional model as a flat graph: nested models dissolved, order and names fixed.

Keras holds the graph in ``tensor._keras_history``, ``operation._inbound_nodes`` and
``node.arguments``, which ``keras.models.clone_model`` and saving are built on. This module is the
only one that reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.backbone.naming import canonical_names
from featurestore.errors import BackboneError

# Numbers of a layer that may stand in its configuration, as text.
_FEW = 64

Tensor = Any
Edge = tuple[int, int]  # a node's number and which of its outputs


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one layer or operation.

    Attributes
    ----------
    name : str
        Canonical and unique. A layer called a second time is ``name@2`` there.
    operation : keras.Operation or None
        None for the input.
    arguments : (tuple, dict)
        What it was called with; symbolic tensors stand where ``inputs`` come in, in that order.
    inputs : tuple of (int, int)
        Node number and output number of each tensor that it takes.
    outputs : tuple of keras.KerasTensor
        What it gave when the model was built: shapes and dtypes.
    path : tuple of str
        Names of the models that it was nested in, outermost first.
    """

    name: str
    operation: Any
    arguments: tuple[tuple, dict]
    inputs: tuple[Edge, ...]
    outputs: tuple[Tensor, ...]
    path: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Class of the layer or operation."""
        return "InputLayer" if self.operation is None else type(self.operation).__name__


class Graph:
    """A flat graph of one image input, in the order in which Keras lists a model's layers.

    Parameters
    ----------
    nodes : sequence of Node
        The input first; each after all that it takes.
    outputs : sequence of (int, int)
        The model's outputs.
    own_names : mapping of str to str
        Canonical name of each layer that the model itself calls differently, by that name.
    """

    def __init__(
        self, nodes: Sequence[Node], outputs: Sequence[Edge], own_names: Mapping[str, str]
    ) -> None:
        self.nodes = tuple(nodes)
        self.outputs = tuple(outputs)
        self.own_names = dict(own_names)

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Node number of each canonical name, the input's left out."""
        return {node.name: i for i, node in enumerate(self.nodes) if node.operation is not None}

    @cached_property
    def layer_names(self) -> dict[int, str]:
        """Canonical name of each layer and operation, by ``id``."""
        names: dict[int, str] = {}
        for node in self.nodes[1:]:
            names.setdefault(id(node.operation), node.name)
        return names

    def ancestors(self, wanted: Iterable[int]) -> list[int]:
        """Return the numbers of all nodes that the wanted ones need, themselves too, in order."""
        needed = set(wanted)
        for number in range(len(self.nodes) - 1, -1, -1):
            if number in needed:
                needed.update(parent for parent, _ in self.nodes[number].inputs)
        return sorted(needed)

    def bottlenecks(self) -> list[bool]:
        """Tell for each node whether every path from the input to the outputs leads through it.

        In a topological order, a node is one exactly where no edge leaps over it: a leaping edge
        is part of a path that goes around it. One sweep, where building a model to try each layer
        takes minutes for a NASNet.
        """
        furthest = list(range(len(self.nodes)))
        for number, node in enumerate(self.nodes):
            for parent, _ in node.inputs:
                furthest[parent] = max(furthest[parent], number)
        for number, _ in self.outputs:
            furthest[number] = len(self.nodes)
        verdicts, reach = [], 0
        for number, far in enumerate(furthest):
            verdicts.append(reach <= number)
            reach = max(reach, far)
        return verdicts

    def run(
        self,
        inputs: Tensor,
        wanted: Sequence[int],
        call: Callable[[Node], Callable],
    ) -> list[list[Tensor]]:
        """Compute nodes on a tensor, real or symbolic.

        Parameters
        ----------
        inputs : tensor (batch, height, width, channel=3)
            What comes after scaling.
        wanted : sequence of int
            Numbers of the nodes whose outputs to return.
        call : callable of Node to callable
            What to call in the place of each node's operation.

        Returns
        -------
        list of list of tensor
            The outputs of each wanted node.
        """
        import keras

        values: dict[int, list[Tensor]] = {0: [inputs]}
        needed = self.ancestors(wanted)
        last_use = {parent: number for number in needed for parent, _ in self.nodes[number].inputs}
        for number in needed:
            if number == 0:
                continue
            node = self.nodes[number]
            tensors = iter([values[parent][output] for parent, output in node.inputs])
            args, kwargs = keras.tree.map_structure(
                lambda leaf, tensors=tensors: (
                    next(tensors) if isinstance(leaf, keras.KerasTensor) else leaf
                ),
                node.arguments,
            )
            values[number] = keras.tree.flatten(call(node)(*args, **kwargs))
            # Real tensors of a deep network would fill the memory.
            for parent, _ in node.inputs:
                if last_use[parent] == number and parent not in wanted:
                    values.pop(parent, None)
        return [values[number] for number in wanted]

    def shapes(self, input_size: tuple[int, int]) -> list[list[tuple]]:
        """Return the shape of every output of every node, the batch axis first, as None."""
        import keras

        known = [[tuple(tensor.shape) for tensor in node.outputs] for node in self.nodes]
        if known[0] == [(None, *input_size, 3)] and not any(
            None in shape[1:] for shapes in known for shape in shapes
        ):
            return known
        image = keras.KerasTensor((None, *input_size, 3), dtype=self.nodes[0].outputs[0].dtype)
        try:
            tensors = self.run(
                image, range(len(self.nodes)), lambda node: node.operation.compute_output_spec
            )
        except Exception as error:  # whatever a layer raises on a size that it cannot take
            height, width = input_size
            raise BackboneError(
                f"the network does not take images of {height}×{width}: {one_line(error)};"
                " give another --input-size"
            ) from error
        return [[tuple(tensor.shape) for tensor in outputs] for outputs in tensors]


def flatten(model: Any) -> Graph:
    """Dissolve a functional model of images, and all models nested in it, into one graph.

    The model is only read.

    Raises
    ------
    BackboneError
        Where it is not functional, does not take one image, or remembers what it computed before.
    """
    graph = dissolve(model)
    for node in graph.nodes[1:]:
        layers = getattr(node.operation, "_flatten_layers", lambda: ())()
        if any(getattr(layer, "stateful", False) for layer in layers):
            raise BackboneError(
                f"layer {node.name!r} ({node.kind}) is stateful: what it gives for an image depends"
                " on the images before it; build it with stateful=False"
            )
    shape = tuple(graph.nodes[0].outputs[0].shape)
    if len(shape) != 4 or shape[3] != 3:
        raise BackboneError(
            f"model {model.name!r} takes an input of shape {shape}; expected an RGB image:"
            " (None, height, width, 3)"
        )
    return graph


def dissolve(model: Any) -> Graph:
    """Dissolve a functional model of one input, whatever its shape; see :func:`flatten`."""
    functional = as_functional(model)
    if functional is None:
        raise BackboneError(
            f"model {model.name!r} is not functional: found {_why_not(model)}, expected a model"
            " made of layers called on keras.Input"
        )
    if len(functional.inputs) != 1:
        raise BackboneError(
            f"model {model.name!r} takes {len(functional.inputs)} inputs; expected one"
        )
    flattener = _Flattener(functional.inputs[0])
    outputs = flattener.dissolve(functional, [(0, 0)], ())
    return flattener.graph(outputs)


def as_functional(operation: Any) -> Any | None:
    """Return the functional model behind a layer, or None where it is an ordinary one."""
    from keras.src.models.functional import Functional
    from keras.src.models.sequential import Sequential

    if isinstance(operation, Sequential):
        return operation._functional
    # A subclass that computes something else than its graph cannot be dissolved.
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


class _Flattener:
    def __init__(self, image: Tensor) -> None:
        self.nodes = [Node("", None, ((), {}), (), (image,), ())]

    def dissolve(self, model: Any, inputs: list[Edge], path: tuple[str, ...]) -> list[Edge]:
        """Append a model's nodes, given what its inputs are here; return what its outputs are."""
        edges = {id(tensor): edge for tensor, edge in zip(model.inputs, inputs, strict=True)}
        for call in _calls(model):
            taken = [edges[id(tensor)] for tensor in call.arguments.keras_tensors]
            inner = as_functional(call.operation)
            if inner is None:
                given = self._append(call, taken, path)
            else:
                given = self.dissolve(inner, taken, (*path, call.operation.name))
            edges.update(zip(map(id, call.outputs), given, strict=True))
        return [edges[id(tensor)] for tensor in model.outputs]

    def _append(self, call: Any, taken: list[Edge], path: tuple[str, ...]) -> list[Edge]:
        import keras

        number = len(self.nodes)
        kwargs = dict(call.arguments.kwargs)
        # Some layers record their default, True, there. ``predict`` overrides it, and so do we.
        kwargs.pop("training", None)
        arguments = keras.tree.map_structure(_as_now, (call.arguments.args, kwargs))
        self.nodes.append(
            Node("", call.operation, arguments, tuple(taken), tuple(call.outputs), path)
        )
        return [(number, output) for output in range(len(call.outputs))]

    def graph(self, outputs: list[Edge]) -> Graph:
        """Order the nodes as Keras orders layers, drop those no output needs, and name them."""
        order = _keras_order(self.nodes, outputs)
        place = {old: new for new, old in enumerate(order)}
        nodes = [self.nodes[old] for old in order]
        operations = list({id(node.operation): node for node in nodes[1:]}.values())
        names = canonical_names([(node.operation, node.path) for node in operations])
        by_id = {id(node.operation): name for node, name in zip(operations, names, strict=True)}
        calls: dict[int, int] = {}
        named = [Node("image", None, ((), {}), (), nodes[0].outputs, ())]
        for node in nodes[1:]:
            key = id(node.operation)
            calls[key] = calls.get(key, 0) + 1
            name = by_id[key] if calls[key] == 1 else f"{by_id[key]}@{calls[key]}"
            inputs = tuple((place[parent], output) for parent, output in node.inputs)
            named.append(
                Node(name, node.operation, node.arguments, inputs, node.outputs, node.path)
            )
        own = {node.operation.name: node.name for node in reversed(named[1:])}
        return Graph(named, [(place[number], output) for number, output in outputs], own)


def _as_now(argument: Any) -> Any:
    """Return an argument as it is now: arrays and variables may be changed later."""
    import keras
    import numpy as np

    if isinstance(argument, keras.Variable) or hasattr(argument, "assign"):
        return np.array(keras.ops.convert_to_numpy(argument))
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def _calls(model: Any) -> list[Any]:
    """Return the Keras nodes of one model, nested ones whole, each after all that it takes."""
    given = {id(tensor) for tensor in model.inputs}
    done: set[int] = set()
    ordered: list[Any] = []
    stack: list[tuple[Any, bool]] = [(tensor, False) for tensor in reversed(model.outputs)]
    while stack:
        tensor, visited = stack.pop()
        if id(tensor) in given:
            continue
        history = tensor._keras_history
        call = history.operation._inbound_nodes[history.node_index]
        if id(call) in done:
            continue
        if visited:
            done.add(id(call))
            ordered.append(call)
        else:
            stack.append((tensor, True))
            stack.extend((each, False) for each in reversed(call.arguments.keras_tensors))
    return ordered


def _keras_order(nodes: Sequence[Node], outputs: Sequence[Edge]) -> list[int]:
    """Return node numbers by falling distance from the outputs, then as first come.

    This is how Keras orders ``model.layers``, so that "the last 3 layers" are the same ones.
    """
    depth = {number: 0 for number, _ in outputs}
    for number in range(len(nodes) - 1, 0, -1):
        if number in depth:
            for parent, _ in nodes[number].inputs:
                depth[parent] = max(depth.get(parent, 0), depth[number] + 1)
    depth[0] = max(depth.values(), default=0) + 1
    return sorted(depth, key=lambda number: (-depth[number], number))


def clone(graph: Graph, inputs: Tensor, wanted: Sequence[int], prefix: str = "") -> list[Tensor]:
    """Build nodes anew on a symbolic tensor: new layers of the same configuration and weights.

    Parameters
    ----------
    graph : Graph
        What to copy.
    inputs : keras.KerasTensor
        What the copy is built on, in the place of the graph's input.
    wanted : sequence of int
        Numbers of the nodes whose outputs to return; each must have one.
    prefix : str
        Put before every canonical name.

    Returns
    -------
    list of keras.KerasTensor
    """
    copies: dict[int, Any] = {}

    def copied(node: Node) -> Any:
        key = id(node.operation)
        if key not in copies:
            name = prefix + graph.layer_names[key]
            copies[key] = _copy(node.operation, name)
        return at_rest(copies[key])

    tensors = graph.run(inputs, wanted, copied)
    originals = {id(node.operation): node.operation for node in graph.nodes[1:]}
    for key, copy in copies.items():
        _copy_weights(originals[key], copy)
    return [outputs[0] for outputs in tensors]


def clone_onto(model: Any, tensor: Tensor, prefix: str = "") -> Tensor:
    """Build a functional model of one input and one output anew on a symbolic tensor.

    Parameters
    ----------
    model : keras.Model
        What to copy, nested models dissolved; it is only read.
    tensor : keras.KerasTensor (batch, …)
        Of the shape of the model's input.
    prefix : str
        Put before every canonical name.

    Returns
    -------
    keras.KerasTensor
        The model's output.
    """
    graph = dissolve(model)
    return clone(graph, tensor, [number for number, _ in graph.outputs], prefix)[0]


def at_rest(layer: Any) -> Callable:
    """Return the call of a layer that is not in training mode unless the model is told to train.

    Preprocessing layers have ``training=True`` as their default. Keras hands the mode of one layer
    on to all that are called after it without a mode, so that one ``Resizing`` would put every
    BatchNorm of the model in training mode.
    """
    parameter = inspect.signature(layer.call).parameters.get("training")
    if parameter is None or parameter.default in (None, False, parameter.empty):
        return layer
    return lambda *args, **kwargs: layer(*args, **{**kwargs, "training": False})


def _copy(operation: Any, name: str) -> Any:
    config = operation.get_config()
    if _adapted(operation):
        # Normalization computes with a copy of its weights, which set_weights leaves as it was;
        # numbers in the configuration go wherever the layer goes.
        mean, variance, _ = operation.get_weights()
        config |= {"mean": mean.tolist(), "variance": variance.tolist()}
    try:
        copy = type(operation).from_config(config)
    except Exception as error:  # whatever a layer raises that cannot describe itself
        raise BackboneError(
            f"layer {name!r} ({type(operation).__name__}) cannot be built from its configuration:"
            f" {one_line(error)}"
        ) from error
    copy.name = name
    return copy


def _adapted(operation: Any) -> bool:
    """Whether a layer is a Normalization that learned a few numbers, such as a mean a channel."""
    import keras

    if not isinstance(operation, keras.layers.Normalization) or not operation.weights:
        return False
    return int(np.prod(operation.weights[0].shape)) <= _FEW


def _copy_weights(source: Any, copy: Any) -> None:
    if not getattr(copy, "weights", None):
        return
    # Layers that were quantized hold their weights in another order.
    names = [weight.name for weight in source.weights]
    arrays = dict(zip(names, source.get_weights(), strict=True))
    wanted = [weight.name for weight in copy.weights]
    same = len(arrays) == len(names) and set(arrays) == set(wanted)
    copy.set_weights([arrays[name] for name in wanted] if same else source.get_weights())
    if hasattr(copy, "finalize_state"):
        copy.finalize_state()


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the first sentence or so of another library's error message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


def _why_not(model: Any) -> str:
    if type(model).__name__ == "Sequential":
        return "a Sequential that was never built on an input shape"
    return f"a subclass of keras.Model ({type(model).__name__})"
