"""Small networks of KerasHub, with random weights: one of each class that takes an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras_hub

hub = keras_hub.models
SHAPE = (64, 64, 3)
VISION = {"patch_size": 16, "hidden_dim": 8, "num_layers": 2, "num_heads": 2}
VISION |= {"intermediate_dim": 16, "image_shape": SHAPE}


def resnet() -> Any:
    return hub.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block", image_shape=SHAPE)


def csp_net() -> Any:
    return hub.CSPNetBackbone(
        8, 3, 1, [1, 1], [1, 2], [8, 16], "dark_block", stage_type="dark", image_shape=SHAPE
    )


def efficient_net() -> Any:
    return hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 2,
        stackwise_depth_coefficients=[1.0] * 2,
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "v1"],
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        input_shape=SHAPE,
        num_features=16,
    )


def hg_net() -> Any:
    stages = [[8, 8, 16, 1, 2, 3], [16, 8, 16, 1, 2, 3]]
    return hub.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=stages,
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=SHAPE,
    )


def mit() -> Any:
    return hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=SHAPE,
        hidden_dims=[8, 16],
    )


def mobile_net() -> Any:
    return hub.MobileNetBackbone(
        stackwise_expansion=[[8, 16], [16]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]],
        stackwise_kernel_size=[[3, 3], [3]],
        stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, 0.25], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [1]],
        output_num_filters=32,
        depthwise_filters=16,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=16,
        image_shape=SHAPE,
    )


def sam() -> Any:
    return hub.SAMBackbone(
        vit_det(),
        keras_hub.layers.SAMPromptEncoder(image_embedding_size=(4, 4), input_image_size=SHAPE[:2]),
        keras_hub.layers.SAMMaskDecoder(
            hidden_size=256, num_layers=1, intermediate_dim=16, num_heads=2
        ),
    )


def vit_det() -> Any:
    return hub.ViTDetBackbone(8, 2, 16, 2, [1], image_shape=SHAPE, window_size=2)


def clip() -> Any:
    text = hub.CLIPTextEncoder(20, 8, 8, 1, 2, 16, max_sequence_length=8)
    return hub.CLIPBackbone(hub.CLIPVisionEncoder(**VISION), text, 8)


def dinov2() -> Any:
    size = {"image_shape": SHAPE, "position_embedding_shape": SHAPE[:2]}
    return hub.DINOV2Backbone(16, 2, 8, 2, 16, num_register_tokens=2, **size)


BUILDERS: dict[str, Callable[[], Any]] = {
    "BLIP2VisionEncoder": lambda: hub.BLIP2VisionEncoder(
        64, 16, 2, 2, 8, 16, True, True, True, True, 0.0, 1e-6, 0.02
    ),
    "CLIPBackbone": clip,
    "CLIPVisionEncoder": lambda: hub.CLIPVisionEncoder(**VISION),
    "CSPNetBackbone": csp_net,
    "DINOV2Backbone": dinov2,
    "DINOV3Backbone": lambda: hub.DINOV3Backbone(16, 2, 8, 2, 16, image_shape=SHAPE),
    "DeiTBackbone": lambda: hub.DeiTBackbone(SHAPE, (16, 16), 2, 2, 8, 16),
    "DenseNetBackbone": lambda: hub.DenseNetBackbone([1, 1], SHAPE, growth_rate=4),
    "EfficientNetBackbone": efficient_net,
    "Gemma3VisionEncoder": lambda: hub.Gemma3VisionEncoder(64, 16, 2, 8, 2, 16, 8, pool_size=2),
    "HGNetV2Backbone": hg_net,
    "MetaCLIP2VisionEncoder": lambda: hub.MetaCLIP2VisionEncoder(**VISION),
    "MiTBackbone": mit,
    "MobileNetBackbone": mobile_net,
    "ResNetBackbone": resnet,
    "RetinaNetBackbone": lambda: hub.RetinaNetBackbone(resnet(), 2, 3, False, image_shape=SHAPE),
    "SAMBackbone": sam,
    "SegFormerBackbone": lambda: hub.SegFormerBackbone(mit(), 8),
    "SigLIPVisionEncoder": lambda: hub.SigLIPVisionEncoder(**VISION),
    "SwinTransformerBackbone": lambda: hub.SwinTransformerBackbone(SHAPE, 8, [2, 2], [2, 2], 4),
    "VGGBackbone": lambda: hub.VGGBackbone([1, 1], [8, 8], SHAPE),
    "ViTBackbone": lambda: hub.ViTBackbone(SHAPE, (16, 16), 2, 2, 8, 16),
    "ViTDetBackbone": vit_det,
    "VideoPrismBackbone": lambda: hub.VideoPrismBackbone(
        4, 16, 8, 16, 2, 1, 1, 0, image_shape=SHAPE
    ),
    "XceptionBackbone": lambda: hub.XceptionBackbone([[8, 8], [16, 16]], [True, True], SHAPE),
}
