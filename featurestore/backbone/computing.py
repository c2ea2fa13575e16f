"""A part of a network as a function on tensors, and its compilation by an engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurestore.backbone import forward
from featurestore.backbone.copying import recast
from featurestore.backbone.custom import is_keras
from featurestore.backbone.graph import Graph, Node, at_inference
from featurestore.backbone.identity import precisions
from featurestore.backbone.openvino import EngineError, with_openvino
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError, FeatureStoreWarning


@dataclass(frozen=True, eq=False)
class Computation:
    """The function from images, or from the activation of a layer, to the activations at refs.

    Attributes
    ----------
    graph : Graph
        Of the images' size.
    preprocessing : Preprocessing
    ends : tuple of (int, LayerRef)
        Node number and ref of each activation to compute.
    start : int
        The node whose activation is the input; 0 for the image.
    precision : {"float32", "bfloat16", "float16"}
        In which an engine computes it. Called directly, layers compute in their own.
    special_tokens : int or None
        As `LayerRef.reduce` takes it.
    """

    graph: Graph
    preprocessing: Preprocessing
    ends: tuple[tuple[int, LayerRef], ...]
    start: int = 0
    precision: str = "float32"
    special_tokens: int | None = None

    @property
    def precisions(self) -> list[str]:
        """The types that compute each activation, such as ``bfloat16+float32``."""
        types = precisions(self.graph)
        lower = self.precision != "float32"
        return [self.precision if lower else types[number] for number, _ in self.ends]

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are computed."""
        numbers = self.graph.ancestors([number for number, _ in self.ends], self.start)
        return [self.graph.nodes[number] for number in numbers if number != self.start]

    def __call__(self, inputs: Any, move: Callable[[Any], Any] | None = None) -> list[Any]:
        """Return a float32 tensor (batch, …) for each ref.

        Parameters
        ----------
        inputs : tensor
            uint8 images (batch, height, width, channel=3), or float32 activations (batch, …).
        move : callable, optional
            Applied to the network's input and to every layer's output.
        """
        import keras

        if self.start:
            # What the layers see when the whole network computes.
            first = keras.ops.cast(inputs, self.graph.nodes[self.start].outputs[0].dtype)
        else:
            first = self.preprocessing.scale(inputs)

        def moved(node: Node) -> Callable:
            call = self._call(node)
            return lambda *args, **kwargs: keras.tree.map_structure(move, call(*args, **kwargs))

        numbers = [number for number, _ in self.ends]
        if move is None:
            outputs = self.graph.run(first, numbers, self._call, self.start)
        else:
            outputs = self.graph.run(move(first), numbers, moved, self.start)
        refs = (ref for _, ref in self.ends)
        return [
            _reduced(output[0], ref, self.special_tokens)
            for output, ref in zip(outputs, refs, strict=True)
        ]

    def _call(self, node: Node) -> Callable:
        """Return what to call for a node: not a resize that keeps the size, as promoted models do.

        It changes no pixel, and OpenVINO has no antialiased resize.
        """
        import keras

        if node.kind == "Resizing" and is_keras(type(node.operation)):
            ((parent, output),) = node.inputs
            if self.graph.nodes[parent].outputs[output].shape == node.outputs[0].shape:
                return lambda image: keras.ops.cast(image, node.outputs[0].dtype)
        return at_inference(node)


def _reduced(activation: Any, ref: LayerRef, special_tokens: int | None) -> Any:
    """Cast an activation (batch, …) to float32 and reduce it; NaN stays NaN."""
    import keras

    activation = keras.ops.cast(activation, "float32")
    reduced = ref.reduce(activation, special_tokens)
    if ref.reduction not in ("max", "gem"):
        return reduced
    # TensorFlow compiles max(sqrt(x)) to sqrt(max(x)), which hides NaN.
    axes = tuple(range(1, len(activation.shape) - 1))
    has_nan = keras.ops.any(keras.ops.isnan(activation), axis=axes)
    return keras.ops.where(has_nan, float("nan"), reduced)


def compile_model(part: Computation, engines: Sequence[str], name: str) -> forward.CompiledModel:
    """Compile a part of the network ``name`` with the first engine that can compute it.

    Raises
    ------
    BackboneError
        If none can.
    """
    shape = tuple(part.graph.nodes[part.start].outputs[0].shape[1:])
    dtype = "float32" if part.start else "uint8"
    lower = {precisions(part.graph)[number] for number, _ in part.ends} - {"float32"}
    if engines[0] == "openvino" and not (lower and "tensorflow" in engines):
        try:
            if lower:
                raise EngineError(f"its layers compute in {', '.join(sorted(lower))}")
            # OpenVINO itself lowers the precision.
            return with_openvino(part, shape, dtype, part.precision)
        except EngineError as error:
            if len(engines) == 1:
                raise BackboneError(
                    f"the engine openvino cannot compute {name}: {error}",
                    remedy="compute with --engine tensorflow (in Python: engine='tensorflow')",
                ) from error
            warnings.warn(
                f"TensorFlow computes, because OpenVINO cannot compute {name}: {error}",
                FeatureStoreWarning,
                stacklevel=2,
            )
    if part.precision != "float32":
        part = replace(part, graph=recast(part.graph, part.precision))
    return forward.with_tensorflow(part, shape, dtype)
