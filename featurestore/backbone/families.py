"""The 40 networks of ``keras.applications``: how each is called, scaled and recognised."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

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
    scaling: str
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
    module: str, scaling: str, sizes: dict[str, int], least: int = 32
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


# How a model that was built from an application, and saved, still shows which one it was: by the
# name of the (nested) model, or by names that only this family gives its first layers. Families
# that scale inside are not listed: their graph itself says so, or the scaling was left out.
_MODEL_NAMES = {
    "densenet": r"densenet(121|169|201)",
    "inception_resnet_v2": r"inception_resnet_v2",
    "inception_v3": r"inception_v3",
    "mobilenet": r"mobilenet_\d\.\d\d_\d+",
    "mobilenet_v2": r"mobilenetv2_\d\.\d\d_\d+",
    "nasnet": r"NASNet|nasnet_(mobile|large)",
    "resnet": r"resnet(50|101|152)",
    "resnet_v2": r"resnet(50|101|152)v2",
    "vgg16": r"vgg16",
    "vgg19": r"vgg19",
    "xception": r"xception",
}
_LAYER_NAMES = {
    "densenet": {"conv1_conv", "conv1_bn", "conv2_block1_0_bn", "conv2_block1_concat"},
    "inception_resnet_v2": {"mixed_5b", "block35_1", "block35_2"},
    "inception_v3": {"mixed0", "mixed1", "mixed2"},
    "mobilenet": {"conv1", "conv1_bn", "conv_dw_1", "conv_pw_1"},
    "mobilenet_v2": {"Conv1", "bn_Conv1", "expanded_conv_depthwise", "expanded_conv_project"},
    "nasnet": {"stem_conv1", "stem_bn1"},
    "resnet": {"conv1_conv", "conv1_bn", "pool1_pool", "conv2_block1_0_conv"},
    "resnet_v2": {"conv1_conv", "pool1_pool", "conv2_block1_preact_bn"},
    "vgg16": {"block1_conv1", "block1_conv2", "block1_pool", "block5_conv3"},
    "xception": {"block1_conv1", "block1_conv1_bn", "block1_conv2_act"},
}
_MODULES = {each.module: each for each in APPLICATIONS.values()}


def recognise(model_names: Collection[str], layer_names: Collection[str]) -> Application | None:
    """Return an application of the family that a saved model came from, or None.

    Parameters
    ----------
    model_names : collection of str
        Names of the model and of those nested in it that take the image itself.
    layer_names : collection of str
        Names of all layers.
    """
    by_model = {
        module
        for module, pattern in _MODEL_NAMES.items()
        if any(re.fullmatch(pattern, name) for name in model_names)
    }
    by_layer = {module for module, names in _LAYER_NAMES.items() if names <= set(layer_names)}
    scalings = {_MODULES[module].scaling for module in by_model or by_layer}
    if len(scalings) != 1:
        return None
    return _MODULES[next(iter(by_model or by_layer))]
