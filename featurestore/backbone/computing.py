"""A part of a network as a function on tensors, and its compilation by an engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.copying import recast
from featurestore.backbone.custom import is_keras
from featurestore.backbone.engines import Computing
from featurestore.backbone.graph import Graph, Node, at_inference
from featurestore.backbone.identity import precisions
from featurestore.backbone.openvino import EngineError, with_openvino
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.refs import LayerRef
from featurestore.errors import BackboneError, FeatureStoreWarning

# The distance from 1 to the next number of each type.
UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


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

    def plain(self) -> forward.Forward:
        """Return it layer by layer, on the CPU: what compiled models are checked against."""
        return forward.plain(self)

    def rounded(self, seed: int = 0) -> forward.Forward:
        """Return the plain layers with the last bit of each layer's result moved up or down.

        What this changes is what rounding may change: the same layers, computed in another order of
        sums, on another machine or in another batch, differ by about as much.

        Parameters
        ----------
        seed : int
            From 0 on; every seed gives another movement. Equal values move alike, as they round
            alike, and a row moves alike whatever else is in its batch.
        """
        import keras

        def move(tensor: Any) -> Any:
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            if dtype not in UNITS:  # integers are exact
                return tensor
            factors = 1 + UNITS[dtype] * signs(keras.ops.convert_to_numpy(tensor), seed)
            return keras.ops.multiply(tensor, keras.ops.convert_to_tensor(factors, dtype))

        return forward.plain(lambda images: self(images, move))

    def compiled(self, computing: Computing, name: str) -> forward.CompiledModel:
        """Compile it, as a part of the network ``name``, with the first engine that can.

        Raises
        ------
        BackboneError
            If none can.
        """
        engines = computing.engines()
        shape = tuple(self.graph.nodes[self.start].outputs[0].shape[1:])
        dtype = "float32" if self.start else "uint8"
        lower = {precisions(self.graph)[number] for number, _ in self.ends} - {"float32"}
        if engines[0] == "openvino" and not (lower and "tensorflow" in engines):
            try:
                if lower:
                    raise EngineError(f"its layers compute in {', '.join(sorted(lower))}")
                # OpenVINO itself lowers the precision.
                return with_openvino(self, shape, dtype, self.precision)
            except EngineError as error:
                if len(engines) == 1:
                    raise BackboneError(
                        f"the engine openvino cannot compute {name}: {error}",
                        remedy="compute with --engine tensorflow (in Python: engine='tensorflow')",
                    ) from error
                warnings.warn(
                    f"TensorFlow computes, because OpenVINO cannot compute {name}: {error}",
                    FeatureStoreWarning,
                    stacklevel=3,
                )
        part = self
        if self.precision != "float32":
            part = replace(self, graph=recast(self.graph, self.precision))
        return forward.with_tensorflow(part, shape, dtype)

    def another_way(self, engine: str) -> str:
        """Return how else to compute what an engine computes wrongly here."""
        return forward.another_way(engine)


def signs(values: np.ndarray, seed: int) -> np.ndarray:
    """Return 1 or -1 for each value, by a multiplicative hash of its bits."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(15))) + np.uint64(seed * 0x632BE59BD9B4E019 % 2**64)
    high = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)
    return 2.0 * high.astype(np.float64) - 1.0


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
