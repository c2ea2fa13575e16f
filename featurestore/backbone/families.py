"""The 40 networks of ``keras.applications``: how each is called, scaled and recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from featurestore.backbone.preprocessing import Scaling


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
        How pixels of 0 to 255 are scaled before the first layer; "none" if the network does it.
    size : int
        Side of the images it was trained on.
    """

    constructor: str
    module: str
    scaling: Scaling
    size: int

    @property
    def name(self) -> str:
        """The name in feature keys: the constructor's, in lower case."""
        return self.constructor.lower()


def _family(module: str, scaling: Scaling, sizes: dict[str, int]) -> dict[str, Application]:
    return {name.lower(): Application(name, module, scaling, sizes[name]) for name in sizes}


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
    **_family("inception_resnet_v2", "tf", {"InceptionResNetV2": 299}),
    **_family("inception_v3", "tf", {"InceptionV3": 299}),
    **_family("mobilenet", "tf", {"MobileNet": 224}),
    **_family("mobilenet_v2", "tf", {"MobileNetV2": 224}),
    **_family("mobilenet_v3", "none", {"MobileNetV3Small": 224, "MobileNetV3Large": 224}),
    **_family("nasnet", "tf", {"NASNetMobile": 224, "NASNetLarge": 331}),
    **_family("resnet", "caffe", {f"ResNet{depth}": 224 for depth in (50, 101, 152)}),
    **_family("resnet_v2", "tf", {f"ResNet{depth}V2": 224 for depth in (50, 101, 152)}),
    **_family("vgg16", "caffe", {"VGG16": 224}),
    **_family("vgg19", "caffe", {"VGG19": 224}),
    **_family("xception", "tf", {"Xception": 299}),
}


def application(name: str) -> Application | None:
    """Return the application of that name, whatever its case, hyphens and underscores."""
    return APPLICATIONS.get(re.sub(r"[-_ ]", "", name).lower())


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


def recognise(first: str, layers: Iterable[str]) -> list[Application]:
    """Return the networks of the family that a saved model came from, or none.

    Parameters
    ----------
    first : str
        Name of the first layer that does not augment or resize.
    layers : iterable of str
        Names of all layers.
    """
    names = set(layers)
    modules = {
        module
        for module, (firsts, marks) in _MARKS.items()
        if first in firsts.split() and names.issuperset(marks.split())
    }
    found = [each for each in APPLICATIONS.values() if each.module in modules]
    return found if len({each.scaling for each in found}) == 1 else []
