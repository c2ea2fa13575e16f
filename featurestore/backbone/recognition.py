"""The preprocessing that a model file or object expects, if the model itself shows it.

Two kinds of evidence count: the graph begins by scaling pixels of 0 to 255, or with a network of
``keras.applications``, known by the names of its layers. Without either, the caller has to say: a
wrong guess would be silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featurestore.backbone.families import APPLICATIONS, Application
from featurestore.backbone.graph import Graph, Node
from featurestore.backbone.preprocessing import Preprocessing, Scaling, Size
from featurestore.errors import BackboneError

# They keep the range of the pixels, so that evidence may come after them.
_KEEPS_RANGE = {
    "Cast",
    "CenterCrop",
    "Dropout",
    "Flip",
    "GaussianNoise",
    "GetItem",
    "Identity",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
    "Resizing",
    "Stack",
}
_SCALES = {"Add", "Divide", "Multiply", "Normalization", "Rescaling", "Subtract", "TrueDivide"}
# Separates what scales pixels of 0 to 1 (a factor of up to 4, a mean of about 0.5) from what scales
# pixels of 0 to 255 (a factor of 1/128 or 1/255, a mean of about 110).
_LARGE = 32.0

# How a saved network of a family that does not scale inside is recognised: what its first layer may
# be called, and names that only this family gives its layers.
_MARKS = {
    "densenet": ("zero_padding2d", "conv1_conv conv2_block1_concat pool2_pool"),
    "inception_resnet_v2": ("conv2d", "mixed_5b block35_1_mixed conv_7b"),
    "inception_v3": ("conv2d", "mixed0 mixed1 mixed2 mixed3"),
    "mobilenet": ("conv1 conv1_pad", "conv1 conv1_bn conv_dw_1 conv_pw_1"),
    "mobilenet_v2": (
        "Conv1 Conv1_pad",
        "Conv1 bn_Conv1 expanded_conv_depthwise expanded_conv_project",
    ),
    "nasnet": ("stem_conv1", "stem_conv1 stem_bn1"),
    "resnet": ("conv1_pad", "conv1_conv conv1_bn pool1_pool conv2_block1_0_conv"),
    "resnet_v2": ("conv1_pad", "conv1_conv pool1_pool conv2_block1_preact_bn"),
    "vgg16": ("block1_conv1", "block1_conv1 block1_conv2 block1_pool block3_conv3"),
    "vgg19": ("block1_conv1", "block1_conv1 block1_conv2 block1_pool block3_conv4"),
    "xception": ("block1_conv1", "block1_conv1 block1_conv1_bn block1_conv2_act"),
}


def find_preprocessing(
    graph: Graph,
    model_name: str,
    *,
    input_size: Size | None = None,
    scaling: Scaling | None = None,
    **options: Any,
) -> Preprocessing:
    """Return the preprocessing of a model, from what it shows and what the caller says.

    Input size and scaling are required if the model does not show them.

    Raises
    ------
    BackboneError
        If the two leave something open, or contradict each other.
    """
    networks: list[Application] = []
    if scaling is None:
        scaling, networks = shown_scaling(graph, model_name)
    height, width = graph.nodes[0].outputs[0].shape[1:3]
    if _resizes_pixels(graph):
        # A nested model records the size of the first images that it saw; it takes any.
        height = width = None
    if input_size is None:
        own = (height, width) if height and width else None
        input_size = own or _usual_size(graph, networks, model_name)
    options = {"input_size": input_size, "scaling": scaling, **options}
    preprocessing = Preprocessing.of(options)
    size = preprocessing.input_size
    if height not in (None, size[0]) or width not in (None, size[1]):
        raise BackboneError(
            f"model {model_name!r} takes images of {height}×{width}, not of {size[0]}×{size[1]}"
        )
    return preprocessing


def shown_scaling(graph: Graph, model_name: str) -> tuple[Scaling, list[Application]]:
    """Return a model's scaling, and the applications that it may have been built as, if any.

    Raises
    ------
    BackboneError
        If the model does not show it.
    """
    if _takes_pixels(graph):
        return "none", []
    first = _first_steps(graph)
    scales = [node for node in first if node.kind in _SCALES]
    if scales:
        if all(_takes_bytes(node) for node in scales):
            return "none", []
        reason = f"its first layer {scales[0].name!r} scales, but not clearly from 0 to 255"
    else:
        networks = _recognise(first[0].name, graph.by_name) if len(first) == 1 else []
        # The Inceptions begin with an unnamed convolution of stride 2; an adapter in front of one
        # may get its name.
        if networks and (first[0].name != "conv2d" or first[0].operation.strides == (2, 2)):
            return networks[0].scaling, networks
        reason = "the graph does not scale them, and it is not a known keras.applications network"
    raise BackboneError(
        f"model {model_name!r} does not show which scaling of pixels it expects: {reason}",
        remedy="pass --scaling none|unit|tf|torch|caffe (in Python: Backbone.open(MODEL,"
        " scaling=…))",
    )


def _takes_pixels(graph: Graph) -> bool:
    """Whether a model takes pixels as they are."""
    return "int" in str(graph.nodes[0].outputs[0].dtype) or _resizes_pixels(graph)


def _resizes_pixels(graph: Graph) -> bool:
    """Whether a model begins with a resize to whole numbers, as a promoted one does."""
    first = [node for node in graph.nodes[1:] if node.inputs == ((0, 0),)]
    return any(
        node.kind == "Resizing" and "int" in str(node.operation.compute_dtype) for node in first
    )


def _recognise(first: str, layers: Iterable[str]) -> list[Application]:
    """Return the networks of the family that a saved model came from, or none.

    ``first`` is the name of the first layer that does not augment or resize.
    """
    names = set(layers)
    modules = {
        module
        for module, (firsts, marks) in _MARKS.items()
        if first in firsts.split() and names.issuperset(marks.split())
    }
    networks = [network for network in APPLICATIONS.values() if network.module in modules]
    return networks if len({network.scaling for network in networks}) == 1 else []


def _usual_size(graph: Graph, networks: list[Application], model_name: str) -> Size:
    for node in graph.nodes[1:]:
        if node.kind == "Resizing" and node.inputs == ((0, 0),):  # as in a promoted model
            return node.operation.height, node.operation.width
    sizes = {network.size for network in networks}
    if len(sizes) != 1:
        raise BackboneError(
            f"model {model_name!r} takes images of any size",
            remedy="pass --input-size N (in Python: Backbone.open(MODEL, input_size=N))",
        )
    return sizes.pop()


def _first_steps(graph: Graph) -> list[Node]:
    """Return the first node on each path from the image that may change its range."""
    pixels, first = {0}, []  # the nodes whose output has the range of the image
    for number, node in enumerate(graph.nodes[1:], start=1):
        if any(parent in pixels for parent, _ in node.inputs):
            if node.kind in _KEEPS_RANGE:
                pixels.add(number)
            else:
                first.append(node)
    return first


def _takes_bytes(node: Node) -> bool:
    """Whether a scaling step makes sense only on pixels of 0 to 255."""
    import keras

    if node.kind == "Rescaling":
        return _largest(node.operation.scale) <= 1 / _LARGE
    if node.kind == "Normalization":
        return _largest(node.operation.mean) >= _LARGE
    leaves = keras.tree.flatten(node.arguments)
    constants = [
        _largest(leaf)
        for leaf in leaves
        if leaf is not None and not isinstance(leaf, (keras.KerasTensor, str))
    ]
    if not constants:
        return False
    return max(constants) <= 1 / _LARGE if node.kind == "Multiply" else max(constants) >= _LARGE


def _largest(value: Any) -> float:
    import keras
    import numpy as np

    return float(np.max(np.abs(keras.ops.convert_to_numpy(value))))
