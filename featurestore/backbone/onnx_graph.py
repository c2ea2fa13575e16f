"""An ONNX file as a graph: its nodes, their shapes and weights, and where it can be cut.

What does not depend on the image is folded into constants, so that a shape that the exporter
computed, and one that it wrote down, are the same. The exporters of PyTorch note which module an
operation belongs to: the tensor that a module gives is called as the module is, ``blocks.6``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import openvino
from featurestore.backbone.graph import RESERVED, Edge, Graph, Node
from featurestore.backbone.onnx_files import dtype_name, load, session
from featurestore.digests import canonical_number, digest_array
from featurestore.errors import BackboneError

# Operations whose result has its channels on another axis than what they take, or on none.
_WITHOUT_LAYOUT = {"Einsum", "Expand", "Flatten", "Gather", "MatMul", "Tile"}
_CHANNELS_FIRST = {
    *("AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace"),
    *("GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "InstanceNormalization"),
    *("LRN", "MaxPool", "SpaceToDepth"),
}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, eq=False)
class OnnxOperation:
    """One operation of an ONNX file.

    Attributes
    ----------
    name : str
        Of the tensor that it gives.
    proto : onnx.NodeProto
    constants : dict of int to numpy.ndarray
        Those among its inputs that do not depend on the image, by position.
    opset : int
        Version of the operators.
    compute_dtype : str
        The type of its output.
    """

    name: str
    proto: Any
    constants: Mapping[int, np.ndarray]
    opset: int
    compute_dtype: str = "float32"

    @property
    def weights(self) -> list[np.ndarray]:
        """Those of its constants that are not numbers or integers, such as shapes."""
        return list(filter(_is_weight, self.constants.values()))

    def get_weights(self) -> list[np.ndarray]:
        """Return `weights`, as a layer of Keras does."""
        return self.weights

    def description(self) -> dict[str, Any]:
        """Return what it computes in canonical JSON form, without the values of its weights."""
        inputs: list[Any] = ["edge" if name else "" for name in self.proto.input]
        for place, array in self.constants.items():
            inputs[place] = (
                {"weight": [array.dtype.name, *array.shape]}
                if _is_weight(array)
                else {"constant": digest_array(array)}
            )
        return {
            "operation": [self.proto.domain, self.proto.op_type, self.opset],
            "attributes": {part.name: _attribute(part) for part in self.proto.attribute},
            "operands": inputs,
            "outputs": [bool(name) for name in self.proto.output],
        }


def _is_weight(array: np.ndarray) -> bool:
    return array.size > 1 and "float" in array.dtype.name


def _attribute(part: Any) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(part)
    values = [value] if isinstance(value, bytes | str) or not isinstance(value, Iterable) else value
    return [_canonical(item) for item in values]


def _canonical(value: Any) -> Any:
    import onnx

    if isinstance(value, float):
        return canonical_number(value)
    if isinstance(value, int | str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, onnx.TensorProto):
        return {"array": digest_array(onnx.numpy_helper.to_array(value))}
    raise BackboneError(f"has an attribute of type {type(value).__name__}: no canonical form")


@dataclass(frozen=True, eq=False)
class OnnxNode(Node):
    """One operation in a graph.

    Attributes
    ----------
    channels : int or None
        The axis of the channels of an output of four axes; None if it is not known.
    rows : bool
        Whether the output has one row for each image.
    """

    channels: int | None = None
    rows: bool = True

    @property
    def kind(self) -> str:
        """The type of the operation."""
        return "InputLayer" if self.operation is None else str(self.operation.proto.op_type)

    @property
    def is_cut(self) -> bool:
        """As of a layer of Keras; and the output is floating, with its channels on a known axis."""
        shape = self.outputs[0].shape
        known = self.rows and (len(shape) < 4 or self.channels is not None)
        return known and "float" in self.outputs[0].dtype and super().is_cut

    @property
    def to_channels_last(self) -> tuple[int, ...] | None:
        """The permutation of axes that puts the channels last; None if they are."""
        return (0, 2, 3, 1) if len(self.outputs[0].shape) == 4 and self.channels == 1 else None


class OnnxGraph(Graph):
    """The graph of an ONNX file, in the order of the file.

    Shapes are those of Keras' layout, channels last.

    Attributes
    ----------
    model : onnx.ModelProto
        The file.
    constants : dict of str to numpy.ndarray
        The tensors that do not depend on the image, by name.
    image : str
        Name of its input.
    channels_first : bool
        Whether the file takes images (batch, channel=3, height, width).
    """

    engines = ("openvino",)

    def __init__(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[Edge],
        model: Any,
        constants: Mapping[str, np.ndarray],
        image: str,
        channels_first: bool,
    ) -> None:
        super().__init__(nodes, outputs)
        self.model, self.constants = model, constants
        self.image, self.channels_first = image, channels_first

    @classmethod
    def read(cls, path: Path) -> OnnxGraph:
        """Read a file; its nodes have shapes only once the graph is :meth:`sized`.

        Raises
        ------
        BackboneError
            If it is not an ONNX file of one image, or its operations cannot be identified.
        """
        import keras

        model = load(path)
        image, channels_first = _image_of(model, path.name)
        values = _constants(model)
        names = _names(model.graph)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        edges: dict[str, Edge] = {image.name: (0, 0)}
        dims = _dims(image)
        size = dims[2:] if channels_first else dims[1:3]
        dtype = dtype_name(image.type.tensor_type.elem_type)
        pixels = keras.KerasTensor((None, *(side or None for side in size), 3), dtype=dtype)
        nodes: list[Node] = [OnnxNode("image", None, ((), {}), (), (pixels,))]
        for proto in model.graph.node:
            if all(name in values for name in proto.output if name):
                continue
            taken = [name for name in proto.input if name and name not in values]
            if missing := [name for name in taken if name not in edges]:
                raise BackboneError(f"{path.name!r} uses a tensor {missing[0]!r} that it never has")
            places = enumerate(proto.input)
            constants = {place: values[name] for place, name in places if name in values}
            name = names[proto.output[0]]
            opset = opsets.get(proto.domain, 0)
            operation = OnnxOperation(name, proto, constants, opset)
            nodes.append(
                OnnxNode(name, operation, ((), {}), tuple(edges[name] for name in taken), ())
            )
            edges.update({out: (len(nodes) - 1, i) for i, out in enumerate(proto.output) if out})
        ends = [edges[output.name] for output in model.graph.output if output.name in edges]
        if not ends:
            raise BackboneError(f"no output of {path.name!r} depends on its image")
        return cls(nodes, ends, model, values, image.name, channels_first)

    def tensor(self, number: int) -> str:
        """Return the name that the file gives to the first output of a node."""
        operation = self.nodes[number].operation
        return self.image if operation is None else str(operation.proto.output[0])

    def special_tokens(self) -> int | None:
        """Return how many tokens are put before the patches; None if the graph does not show it.

        The patches are the positions of the first convolution.
        """
        grids = [node.outputs[0].shape for node in self.nodes if node.kind == "Conv"]
        if not grids or len(grids[0]) != 4:
            return None
        patches, count = grids[0][1] * grids[0][2], None
        for node in self.nodes[1:]:
            shape = node.outputs[0].shape
            if node.is_cut and len(shape) == 3 and shape[1] == patches and count is None:
                count = 0
            if node.kind == "Concat" and len(shape) == 3 and node.inputs:
                parent, output = node.inputs[-1]
                if self.nodes[parent].outputs[output].shape == (None, patches, shape[2]):
                    count = shape[1] - patches
        return count

    def image_shape(self, input_size: tuple[int, int]) -> list[int]:
        """Return the shape of an image as the file takes it."""
        return [3, *input_size] if self.channels_first else [*input_size, 3]

    def sized(self, input_size: tuple[int, int]) -> OnnxGraph:
        """Return this graph with the shapes that its nodes have for images of one size."""
        import keras

        if self.nodes[-1].outputs and self.nodes[0].outputs[0].shape[1:3] == input_size:
            return self
        first = self.nodes[0].outputs[0]
        image = keras.KerasTensor((None, *input_size, 3), dtype=first.dtype)
        channels = 1 if self.channels_first else 3
        nodes: list[Node] = [OnnxNode("image", None, ((), {}), (), (image,), channels)]
        for node, shapes in zip(self.nodes[1:], self._shapes(input_size), strict=True):
            nodes.append(self._shaped(node, nodes, shapes))
        rest = self.model, self.constants, self.image, self.channels_first
        return OnnxGraph(nodes, self.outputs, *rest)

    def _shaped(self, node: Node, nodes: Sequence[Any], shapes: Any) -> OnnxNode:
        import keras

        (two, dtype), three = shapes[0][0], shapes[1][0][0]
        rows = two[:1] == (2,) and three == (3, *two[1:])
        channels = _channels(node, nodes, two)
        if rows and len(two) == 4 and channels == 1:
            two = (two[0], *two[2:], two[1])
        outputs = [keras.KerasTensor((None, *two[1:]), dtype)]
        outputs += [keras.KerasTensor((None, *shape[1:]), kind) for shape, kind in shapes[0][1:]]
        assert isinstance(node, OnnxNode)
        operation = replace(node.operation, compute_dtype=dtype)
        options: Any = {"outputs": tuple(outputs), "channels": channels, "rows": rows}
        return replace(node, operation=operation, **options)

    def _shapes(self, input_size: tuple[int, int]) -> Iterator[Any]:
        """Yield for each node the shapes and types of its outputs for two images, and for three."""
        import onnx

        tensors = [name for node in self.nodes[1:] for name in node.operation.proto.output if name]
        whole = onnx.ModelProto()
        whole.CopyFrom(self.model)
        del whole.graph.output[:]
        whole.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, tensors))
        try:
            shapes = [
                openvino.tensor_shapes(whole, [rows, *self.image_shape(input_size)])
                for rows in (2, 3)
            ]
        except openvino.EngineError as error:
            height, width = input_size
            raise BackboneError(
                f"OpenVINO does not read the network for images of {height}×{width}: {error}",
                remedy="give another input size, or export the network again",
            ) from error
        for node in self.nodes[1:]:
            names = [name for name in node.operation.proto.output if name]
            yield [[of_rows[name] for name in names] for of_rows in shapes]


def _dims(value: Any) -> list[int]:
    """Return the axes of an input; 0 for one that is open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _image_of(model: Any, name: str) -> tuple[Any, bool]:
    """Return the one input, and whether its channels come first."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        listed = ", ".join(f"{value.name!r} {tuple(_dims(value))}" for value in inputs)
        raise BackboneError(
            f"{name!r} takes {len(inputs)} inputs: {listed}",
            "one image",
            "export the part of the model that takes the image",
        )
    (image,) = inputs
    dims = _dims(image)
    if len(dims) != 4 or (dims[1] not in (0, 3) and dims[3] != 3):
        raise BackboneError(
            f"{name!r} takes an input {image.name!r} of shape {tuple(dims)}",
            "RGB images: (batch, 3, height, width) or (batch, height, width, 3)",
        )
    if dims[0]:
        raise BackboneError(
            f"{name!r} takes batches of exactly {dims[0]}",
            "batches of any size",
            f"export it again with dynamic_axes={{{image.name!r}: {{0: 'batch'}}}}, or "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)",
        )
    return image, dims[3] != 3 or dims[1] == 3


def _constants(model: Any) -> dict[str, np.ndarray]:
    """Return the value of each tensor that does not depend on the image."""
    import onnx

    graph = model.graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    varying = {value.name for value in graph.input if value.name not in values}
    fixed = []
    for node in graph.node:
        if varying.intersection(node.input):
            varying.update(node.output)
        else:
            fixed.append(node)
    wanted = [name for node in fixed for name in node.output if name]
    if wanted:
        used = {name for node in fixed for name in node.input}
        part = onnx.helper.make_graph(
            fixed,
            "constants",
            [],
            list(map(onnx.helper.make_empty_tensor_value_info, wanted)),
            [tensor for tensor in graph.initializer if tensor.name in used],
        )
        alone = onnx.helper.make_model(
            part, opset_imports=model.opset_import, ir_version=model.ir_version
        )
        values.update(zip(wanted, session(alone).run(wanted, {}), strict=True))
    return values


def _names(graph: Any) -> dict[str, str]:
    """Return the name of each tensor: of the module that gives it, or its own."""
    takers: dict[str, list[int]] = {}
    scopes = [_modules(node) for node in graph.node]
    for number, node in enumerate(graph.node):
        for tensor in node.input:
            takers.setdefault(tensor, []).append(number)
    last: dict[str, str] = {}
    for node, modules in zip(graph.node, scopes, strict=True):
        if not modules or len(node.output) != 1:
            continue
        users = takers.get(node.output[0], [])
        if not users or any(modules[-1] not in scopes[user] for user in users):
            last[modules[-1]] = node.output[0]
    tensors = [tensor for node in graph.node for tensor in node.output]
    of_module = {tensor: module for module, tensor in last.items() if module not in tensors}
    names: dict[str, str] = {}
    taken = set(RESERVED)
    for tensor in tensors:
        stem = of_module.get(tensor, tensor).replace(":", "_")
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        names[tensor] = name
        taken.add(name)
    return names


def _modules(node: Any) -> list[str]:
    """Return the paths of the PyTorch modules that a node is part of, outermost first."""
    noted = [entry.value for entry in node.metadata_props if entry.key == _SCOPES]
    if noted:
        try:
            return [name for name in ast.literal_eval(noted[0])[1:-1] if name]
        except (SyntaxError, ValueError):
            return []
    # As the older exporter writes them: /blocks/blocks.0/attn/qkv/MatMul.
    modules: list[str] = []
    path: list[str] = []
    for part in node.name.split("/")[1:-1]:
        inside = path and part.startswith(f"{path[-1]}.")
        path = [*path[:-1], part] if inside else [*path, part]
        modules.append(".".join(path))
    return modules


def _channels(node: Any, nodes: Sequence[Any], shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels of a node's output, if its operation and inputs tell."""
    kind, rank, last = node.kind, len(shape), len(shape) - 1
    if kind in _CHANNELS_FIRST:
        return 1
    if kind in ("Gemm", "LayerNormalization") or (kind == "MatMul" and node.operation.constants):
        return last
    # The shape that is shown has its channels last; the file's has them where ``channels`` says.
    alike = [
        nodes[parent].channels
        for parent, output in node.inputs
        if len(nodes[parent].outputs[output].shape) == rank and nodes[parent].channels is not None
    ]
    if kind == "Transpose" and alike:
        order = [list(part.ints) for part in node.operation.proto.attribute if part.name == "perm"]
        return order[0].index(alike[0]) if order else last - alike[0]
    if kind == "Reshape":
        parent, output = node.inputs[0]
        before, channels = nodes[parent].outputs[output].shape, nodes[parent].channels
        # Sequences have their channels last, and an axis that keeps its size there stays.
        from_last = len(before) == 3 or channels == len(before) - 1
        return last if from_last and before[-1] == shape[-1] else None
    return None if kind in _WITHOUT_LAYOUT or not alike else alike[0]
