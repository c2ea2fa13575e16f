"""The 40 networks of ``keras.applications``: how each is called and scaled."""

from __future__ import annotations

import re
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
