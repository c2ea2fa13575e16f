"""Promoted models as ONNX: a resize, a backbone that is an ONNX file, and a head.

Its properties hold the classes, the preprocessing and the provenance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.onnx_files import MOST_BYTES, opset, session
from featurestore.backbone.onnx_part import OURS, Steps
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.digests import digest_array, digest_fields, json_text
from featurestore.errors import InputError, PromotionError, one_line
from featurestore.scratch import scratch

if TYPE_CHECKING:
    import keras

    from featurestore.backbone.onnx_part import OnnxPart

# From this version of the operators on, a resize can be antialiased.
RESIZING_OPSET = 18
BACKBONE = "backbone/"
PIXELS = f"{BACKBONE}{OURS}input"
OUTPUTS = ("features", "scores", "output")
_MODES = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


class OnnxModel:
    """A promoted ONNX model in memory, which onnxruntime computes.

    Parameters
    ----------
    proto : onnx.ModelProto
        From ``image``, uint8 RGB images (batch, height, width, channel=3) of any size, to
        ``output``: probabilities (batch, class), or predicted values (batch, 1).
    """

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self._session: Any = None

    @classmethod
    def read(cls, path: Path) -> OnnxModel:
        """Read a file; InputError if it is not a promoted ONNX model."""
        from featurestore.backbone.onnx_files import load

        model = cls(load(path))
        if not {"classes", "preprocessing"} <= set(model.properties):
            raise InputError(
                f"{path} is not a promoted ONNX model",
                remedy="make one with `featurestore promote HEAD -o MODEL.onnx`",
            )
        return model

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return its outputs for images, each float32 (batch, …)."""
        if self._session is None:
            self._session = session(self.proto)
        outputs: list[np.ndarray] = self._session.run(None, {"image": np.asarray(images)})
        return outputs

    predict_on_batch = __call__

    @property
    def properties(self) -> dict[str, Any]:
        """Classes, preprocessing and provenance, as JSON values."""
        try:
            return {each.key: json.loads(each.value) for each in self.proto.metadata_props}
        except ValueError:
            return {}

    def with_properties(self, **properties: Any) -> OnnxModel:
        """Return a copy with further properties."""
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        texts = {name: json_text(value) for name, value in properties.items()}
        onnx.helper.set_model_props(proto, {**_texts(self.proto), **texts})
        return OnnxModel(proto)

    def with_internals(self) -> OnnxModel:
        """Return a copy that gives (features, scores, output, resized pixels)."""
        import onnx

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.output[:]
        proto.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, (*OUTPUTS, PIXELS)))
        return OnnxModel(proto)

    @property
    def preprocessing(self) -> Preprocessing:
        """How it resizes."""
        return Preprocessing.of(self.properties["preprocessing"])

    def weights_digest(self) -> str:
        """Return a digest of its weights."""
        import onnx

        arrays = map(onnx.numpy_helper.to_array, self.proto.graph.initializer)
        return digest_fields({"weights": [digest_array(array) for array in arrays]})

    def save(self, path: Path) -> None:
        """Write it as one file."""
        import onnx

        if self.proto.ByteSize() >= MOST_BYTES:
            raise InputError("a promoted ONNX model of more than 2 GB cannot be one file")
        onnx.save(self.proto, str(path))


def _texts(proto: Any) -> dict[str, str]:
    return {each.key: each.value for each in proto.metadata_props}


def fused(part: OnnxPart, head: keras.Model, classes: Any) -> OnnxModel:
    """Put a resize before a part of an ONNX file that gives features, and a head after it.

    Parameters
    ----------
    part : OnnxPart
        From images to one ref.
    head : keras.Model
        From features (batch, …) to (scores, output).
    classes : sequence of str or int
        The class of each column of the output; empty for a regressor.

    Raises
    ------
    PromotionError
        If the resize or the head has no form in ONNX.
    """
    import onnx

    preprocessing = part.preprocessing
    if preprocessing.interpolation not in _MODES or preprocessing.resize == "pad":
        raise PromotionError(
            f"resize {preprocessing.resize!r} with {preprocessing.interpolation!r} has no form in "
            "ONNX",
            "stretch or crop, with bilinear, bicubic or nearest",
        )
    try:
        base = part.model()
        if opset(base) < RESIZING_OPSET:
            base = onnx.version_converter.convert_version(base, RESIZING_OPSET)
        with scratch() as folder:
            path = str(folder / "head.onnx")
            options = {"verbose": False, "opset_version": RESIZING_OPSET}
            head.export(path, format="onnx", input_signature=head.inputs, **options)
            tail = onnx.load(path)
        if opset(tail) != opset(base):
            tail = onnx.version_converter.convert_version(tail, opset(base))
    except Exception as error:  # whatever the converters raise
        raise PromotionError(f"the model has no form in ONNX: {one_line(error)}") from error
    # Its tensors may be called as ours are.
    base = onnx.compose.add_prefix(base, BACKBONE)
    tail = onnx.compose.add_prefix(tail, "head/")
    steps = Steps(opset(base), "resizing/")
    _resize(steps, preprocessing)
    nodes = [*steps.nodes, *base.graph.node]
    ends = [base.graph.output[0].name, *(value.name for value in tail.graph.output)]
    nodes.append(onnx.helper.make_node("Identity", ends[:1], [tail.graph.input[0].name]))
    nodes += tail.graph.node
    for end, name in zip(ends, OUTPUTS, strict=True):
        nodes.append(onnx.helper.make_node("Identity", [end], [name]))
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "promoted",
        [info("image", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])],
        [info("output", onnx.TensorProto.FLOAT, ["batch", int(head.outputs[1].shape[-1])])],
        [*base.graph.initializer, *tail.graph.initializer, *steps.constants],
    )
    others = [entry for entry in tail.opset_import if entry.domain not in ("", "ai.onnx")]
    opsets = [*base.opset_import, *others]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=base.ir_version)
    names = [label if isinstance(label, str) else int(label) for label in classes]
    return OnnxModel(proto).with_properties(classes=names, preprocessing=preprocessing.to_dict())


def _resize(steps: Steps, preprocessing: Preprocessing) -> None:
    """Resize ``image`` to the input of a part, to the pixels of the Keras layer or the next.

    Pixels next to the edge are averaged over those that exist, as TensorFlow does.
    """
    height, width = preprocessing.input_size
    image = "image"
    if preprocessing.resize == "crop":
        shape = steps.add("Shape", image)
        high, wide = (
            steps.add("Gather", shape, steps.constant([axis], "int64"), axis=0) for axis in (1, 2)
        )
        starts, ends = [], []
        for own, other, target, across in (
            (high, wide, height, width),
            (wide, high, width, height),
        ):
            # As resizing._fit computes it.
            product = steps.add("Mul", other, steps.constant([target], "int64"))
            product = steps.cast(product, "float32")
            fitting = steps.cast(steps.add("Div", product, steps.constant([across])), "int64")
            length = steps.add("Min", own, fitting)
            length = steps.add("Max", length, steps.constant([1], "int64"))
            rest = steps.add("Sub", own, length)
            starts.append(steps.add("Div", rest, steps.constant([2], "int64")))
            ends.append(steps.add("Add", starts[-1], length))
        bounds = [steps.add("Concat", *places, axis=0) for places in (starts, ends)]
        image = steps.add("Slice", image, *bounds, steps.constant([1, 2], "int64"))
    pixels = steps.add("Transpose", steps.cast(image, "float32"), perm=[0, 3, 1, 2])
    batch = steps.add("Shape", pixels, start=0, end=2)
    size = steps.add("Concat", batch, steps.constant([height, width], "int64"), axis=0)
    options: dict[str, Any] = {"antialias": 1, "exclude_outside": 1}
    if preprocessing.interpolation == "bicubic":
        options["cubic_coeff_a"] = -0.5
    if preprocessing.interpolation == "nearest":
        options = {"nearest_mode": "round_prefer_ceil"}
    mode = _MODES[preprocessing.interpolation]
    resized = steps.add("Resize", pixels, "", "", size, mode=mode, **options)
    bounds = [steps.constant(number) for number in (0.0, 255.0)]
    pixels = steps.add("Clip", steps.add("Round", resized), *bounds)
    pixels = steps.add("Transpose", pixels, perm=[0, 2, 3, 1])
    steps.cast(pixels, "uint8", output=PIXELS)
