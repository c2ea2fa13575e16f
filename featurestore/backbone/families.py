"""The 40 networks of ``keras.applications``: how each is called, scaled and recognised."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from featurestore.backbone.preprocessing import Scaling
from featurestore.errors import BackboneError, nearest


@dataclass(frozen=True)
class Application:
    """One constructor of ``keras.applications``.

    Attributes
    ----------
    constructor : str
        ``keras.applications.<constructor>``.
    module : str
        ``keras.applications.<module>``, which holds its ``preprocess_input``.
    scaling : {"none", "tf", "torch", "caffe"}
        What to do to pixels of 0 to 255 before the first layer; "none" where it scales inside.
    size, least : int
        Side of the images it was trained on; least side that it takes.
    """

    constructor: str
    module: str
    scaling: Scaling
    size: int
    least: int = 32

    @property
    def name(self) -> str:
        """The name in feature keys: the constructor's, in lower case."""
        return self.constructor.lower()

    @property
    def scales_inside(self) -> bool:
        """Whether the network's own graph begins with the scaling."""
        return self.scaling == "none"


def _family(
    module: str, scaling: Scaling, sizes: dict[str, int], least: int = 32
) -> dict[str, Application]:
    return {
        name.lower(): Application(name, module, scaling, size, least)
        for name, size in sizes.items()
    }


APPLICATIONS: dict[str, Application] = {
    **_family(
        "convnext",
        "none",
        {f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
    ),
    **_family("densenet", "torch", {f"DenseNet{depth}": 224 for depth in (121, 169, 201)}),
    **_family(
        "efficientnet",
        "none",
        {
            f"EfficientNetB{i}": size
            for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
        },
    ),
    **_family(
        "efficientnet_v2",
        "none",
        {
            **{f"EfficientNetV2B{i}": size for i, size in enumerate((224, 240, 260, 300))},
            "EfficientNetV2S": 384,
            "EfficientNetV2M": 480,
            "EfficientNetV2L": 480,
        },
    ),
    **_family("inception_resnet_v2", "tf", {"InceptionResNetV2": 299}, least=75),
    **_family("inception_v3", "tf", {"InceptionV3": 299}, least=75),
    **_family("mobilenet", "tf", {"MobileNet": 224}),
    **_family("mobilenet_v2", "tf", {"MobileNetV2": 224}),
    **_family("mobilenet_v3", "none", {"MobileNetV3Small": 224, "MobileNetV3Large": 224}),
    **_family("nasnet", "tf", {"NASNetMobile": 224, "NASNetLarge": 331}),
    **_family("resnet", "caffe", {f"ResNet{depth}": 224 for depth in (50, 101, 152)}),
    **_family("resnet_v2", "tf", {f"ResNet{depth}V2": 224 for depth in (50, 101, 152)}),
    **_family("vgg16", "caffe", {"VGG16": 224}),
    **_family("vgg19", "caffe", {"VGG19": 224}),
    **_family("xception", "tf", {"Xception": 299}, least=71),
}


def application(name: str) -> Application | None:
    """Return the application of that name, whatever its case, hyphens and underscores."""
    return APPLICATIONS.get(re.sub(r"[-_ ]", "", name).lower())


def known_application(name: str) -> Application:
    """Return the application of that name, or raise with the nearest names."""
    found = application(name)
    if found is None:
        raise BackboneError(
            f"no keras.applications network is called {name!r};"
            f" {nearest(name, (each.constructor for each in APPLICATIONS.values()))}"
        )
    return found


# How a model that was built from an application, and saved, still shows which one it was: the name
# of the model, names that only this family gives its layers, and the name of the first layer.
# Families that scale inside are not listed: their graph itself says so, or it was left out.
@dataclass(frozen=True)
class _Marks:
    model: str
    layers: frozenset[str]
    first: frozenset[str]


def _marks(model: str, layers: str, first: str) -> _Marks:
    return _Marks(model, frozenset(layers.split()), frozenset(first.split()))


_MARKS = {
    "densenet": _marks(
        r"densenet(121|169|201)", "conv1_conv conv2_block1_concat pool2_pool", "zero_padding2d"
    ),
    "inception_resnet_v2": _marks(
        r"inception_resnet_v2", "mixed_5b block35_1_mixed conv_7b", "conv2d"
    ),
    "inception_v3": _marks(r"inception_v3", "mixed0 mixed1 mixed2 mixed3", "conv2d"),
    "mobilenet": _marks(
        r"mobilenet_\d\.\d\d_\d+", "conv1 conv1_bn conv_dw_1 conv_pw_1", "conv1 conv1_pad"
    ),
    "mobilenet_v2": _marks(
        r"mobilenetv2_\d\.\d\d_\d+",
        "Conv1 bn_Conv1 expanded_conv_depthwise expanded_conv_project",
        "Conv1 Conv1_pad",
    ),
    "nasnet": _marks(r"NASNet|nasnet_(mobile|large)", "stem_conv1 stem_bn1", "stem_conv1"),
    "resnet": _marks(
        r"resnet(50|101|152)", "conv1_conv conv1_bn pool1_pool conv2_block1_0_conv", "conv1_pad"
    ),
    "resnet_v2": _marks(
        r"resnet(50|101|152)v2", "conv1_conv pool1_pool conv2_block1_preact_bn", "conv1_pad"
    ),
    "vgg16": _marks(r"vgg16", "block1_conv1 block1_conv2 block1_pool block3_conv3", "block1_conv1"),
    "vgg19": _marks(r"vgg19", "block1_conv1 block1_conv2 block1_pool block3_conv4", "block1_conv1"),
    "xception": _marks(
        r"xception", "block1_conv1 block1_conv1_bn block1_conv2_act", "block1_conv1"
    ),
}


def recognise(
    first: str, containers: Collection[str], model: str, layers: Collection[str]
) -> list[Application]:
    """Return the networks of the one family that a saved model came from, or none.

    Parameters
    ----------
    first : str
        Name of the first layer that does not augment or resize.
    containers : collection of str
        Names of the nested models that this layer is in.
    model : str
        Name of the whole model.
    layers : collection of str
        Names of all layers.
    """
    names = frozenset(layers)
    modules = {
        module
        for module, marks in _MARKS.items()
        if any(re.fullmatch(marks.model, each) for each in containers)
    } or {
        module
        for module, marks in _MARKS.items()
        if first in marks.first and (re.fullmatch(marks.model, model) or marks.layers <= names)
    }
    found = [each for each in APPLICATIONS.values() if each.module in modules]
    return found if len({each.scaling for each in found}) == 1 else []
