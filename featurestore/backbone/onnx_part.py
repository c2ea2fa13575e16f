"""A part of an ONNX file as a model of its own: from images to the activations at refs.

Scaling and reductions are operations of the same model. OpenVINO computes it, and onnxruntime is
what it is checked against, operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from featurestore.backbone import openvino
from featurestore.backbone.computing import Computation, signs
from featurestore.backbone.engines import Computing
from featurestore.backbone.forward import CompiledModel, Forward
from featurestore.backbone.onnx_files import opset, session
from featurestore.backbone.onnx_graph import OnnxGraph, OnnxNode
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.refs import GEM_LEAST, GEM_POWER, LayerRef
from featurestore.errors import BackboneError, one_line

# Begins the names of tensors that are not the file's.
OURS = "featurestore/"


class Steps:
    """Operations of ONNX, one after the other, and their constants.

    Parameters
    ----------
    opset : int
        Version of the operators.
    prefix : str
        Begins the names of its tensors.
    """

    def __init__(self, opset: int, prefix: str = OURS) -> None:
        self.opset, self.prefix = opset, prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Add a constant, and return its name."""
        import onnx

        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add an operation, and return the name of its output, by default a new one."""
        import onnx

        name = output or f"{self.prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def cast(self, tensor: str, dtype: str, output: str = "") -> str:
        """Add a cast to a type, by NumPy's name."""
        import onnx

        number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", tensor, output=output, to=number)

    def over(self, kind: str, tensor: str, axes: Sequence[int]) -> str:
        """Add ``ReduceMean`` or ``ReduceMax`` over some axes, which go."""
        if self.opset < 18:
            return self.add(kind, tensor, axes=list(axes), keepdims=0)
        return self.add(kind, tensor, self.constant(list(axes), "int64"), keepdims=0)

    def scale(self, preprocessing: Preprocessing, pixels: str) -> str:
        """Scale uint8 pixels (batch, height, width, channel=3) to float32."""
        scaled = self.cast(pixels, "float32")
        factors, offsets, reverse = preprocessing.factors()
        if reverse:
            scaled = self.add("Gather", scaled, self.constant([2, 1, 0], "int64"), axis=3)
        scaled = self.add("Mul", scaled, self.constant(factors))
        return self.add("Add", scaled, self.constant(offsets))

    def reduce(self, ref: LayerRef, tensor: str, rank: int, special: int | None) -> str:
        """Reduce a float32 activation (batch, …, channel); see :meth:`LayerRef.reduce`."""
        positions = range(1, rank - 1)
        if ref.reduction is None:
            return tensor
        if ref.reduction == "max":
            return self.over("ReduceMax", tensor, positions)
        patches = tensor
        if special and rank == 3 and ref.reduction != "avg":
            bounds = ([special], [np.iinfo(np.int64).max], [1])
            patches = self.add("Slice", tensor, *(self.constant(each, "int64") for each in bounds))
        if ref.reduction == "gem":
            least = self.add("Max", patches, self.constant(GEM_LEAST))
            mean = self.over(
                "ReduceMean", self.add("Pow", least, self.constant(GEM_POWER)), positions
            )
            return self.add("Pow", mean, self.constant(1 / GEM_POWER))
        first = partial(self.add, "Gather", tensor, self.constant(0, "int64"), axis=1)
        if ref.reduction == "cls":
            return first()
        mean = self.over("ReduceMean", patches, positions)
        return self.add("Concat", first(), mean, axis=1) if "cls" in ref.reduction else mean


@dataclass(frozen=True, eq=False)
class OnnxPart(Computation):
    """The function from images, or from the activation of an operation, to those at refs."""

    graph: OnnxGraph

    def model(self) -> Any:
        """Return it as an ONNX model.

        Returns
        -------
        onnx.ModelProto
            From ``input``, uint8 images (batch, height, width, channel=3) of the input size or
            float32 activations, to ``output_0`` …, float32, for each ref.
        """
        import onnx

        steps = Steps(opset(self.graph.model))
        first, shape, dtype = f"{OURS}input", self.graph.nodes[self.start].outputs[0].shape, "uint8"
        if self.start:
            dtype, scaled = "float32", first
        else:
            scaled = steps.scale(self.preprocessing, first)
        start = self.graph.nodes[self.start]
        assert isinstance(start, OnnxNode)
        if start.to_channels_last:
            scaled = steps.add("Transpose", scaled, perm=[0, 3, 1, 2])
        own = start.outputs[0].dtype
        steps.cast(scaled, own, output=self.graph.tensor(self.start))
        steps.nodes += [node.operation.proto for node in self.nodes]
        ends = [self._end(steps, number, ref) for number, ref in self.ends]
        for number, end in enumerate(ends):
            steps.add("Identity", end, output=f"{OURS}output_{number}")
        used = {name for node in steps.nodes for name in node.input}
        given = {name for node in steps.nodes for name in node.output}
        constants = [
            onnx.numpy_helper.from_array(self.graph.constants[name], name)
            for name in sorted(used - given)
            if name in self.graph.constants
        ]
        info, number = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
        float32 = number(np.dtype("float32"))
        graph = onnx.helper.make_graph(
            steps.nodes,
            "part",
            [info(first, number(np.dtype(dtype)), ["batch", *shape[1:]])],
            [info(f"{OURS}output_{i}", float32, None) for i in range(len(ends))],
            [*steps.constants, *constants],
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=self.graph.model.opset_import,
            ir_version=self.graph.model.ir_version,
        )

    def _end(self, steps: Steps, number: int, ref: LayerRef) -> str:
        node = self.graph.nodes[number]
        assert isinstance(node, OnnxNode)
        tensor = steps.cast(self.graph.tensor(number), "float32")
        if node.to_channels_last:
            tensor = steps.add("Transpose", tensor, perm=list(node.to_channels_last))
        return steps.reduce(ref, tensor, len(node.outputs[0].shape), self.special_tokens)

    def plain(self) -> Forward:
        """Return the function as onnxruntime computes it, operation by operation."""
        return _forward(self.model())

    def rounded(self, seed: int = 0) -> Forward:
        """Return the same with the last bit of each weight moved up or down."""
        import onnx

        model = self.model()
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                moved = array * (1 + np.finfo(np.float32).eps * signs(array, seed))
                tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), tensor.name))
        return _forward(model)

    def compiled(self, computing: Computing, name: str) -> CompiledModel:
        """Compile it with OpenVINO.

        Raises
        ------
        BackboneError
            If OpenVINO cannot compute it, or not in this precision, or another engine is asked for.
        """
        if computing.engine == "tensorflow":
            raise BackboneError(
                f"TensorFlow does not compute {name}, which is an ONNX file",
                remedy="compute with --engine openvino (in Python: engine='openvino')",
            )
        names = openvino.precisions()
        if computing.precision not in names:
            raise BackboneError(
                f"OpenVINO does not compute in {computing.precision} on this processor",
                " or ".join(names),
            )
        model, dtype = self.model(), "float32" if self.start else "uint8"
        try:
            return openvino.compiled(
                partial(openvino.read_onnx, model), len(self.ends), dtype, computing.precision
            )
        except openvino.EngineError as error:
            raise BackboneError(
                f"OpenVINO cannot compute {name}: {error}",
                remedy="cut it at an earlier layer, or export it again",
            ) from error

    def another_way(self, engine: str) -> str:
        """Return how else to compute what OpenVINO computes wrongly here."""
        return "compute with another release of OpenVINO, or export the network again"


def _forward(model: Any) -> Forward:
    computes = session(model, plain=True)

    def forward(inputs: np.ndarray) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = computes.run(None, {f"{OURS}input": inputs})
        except Exception as error:  # whatever onnxruntime raises
            raise BackboneError(
                f"onnxruntime does not compute a batch of {len(inputs)}: {one_line(error)}"
            ) from error
        return outputs

    return forward
