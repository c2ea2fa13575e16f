"""Which layers of a fused model train, and from which stored features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.copying import keras_name
from featurestore.backbone.graph import RESERVED, flatten
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.fuse import Fused

if TYPE_CHECKING:
    from featurestore.backbone import Backbone


def unfrozen_layers(fused: Fused, options: FineTuning) -> list[str]:
    """Return the names of the backbone's layers that ``FineTuning.unfreeze`` selects."""
    names = set(fused.backbone_layers) - set(RESERVED)
    return options.unfrozen([layer.name for layer in fused.model.layers if layer.name in names])


def freeze(fused: Fused, trained: Sequence[str]) -> None:
    """Freeze the backbone except for some layers, and BatchNorm and preprocessing everywhere.

    Only ``trainable = False`` keeps the statistics of BatchNorm: ``fit`` overrides a
    ``training=False`` at call time. Wrappers and layers of layers may contain some.
    """
    for layer in fused.model.layers:
        if layer.name in fused.backbone_layers:
            layer.trainable = layer.name in trained
        for part in layer._flatten_layers():
            if isinstance(part, keras.layers.BatchNormalization | keras.layers.Normalization):
                part.trainable = False


def boundary(fused: Fused, backbone: Backbone, ref: str) -> tuple[str | None, Any]:
    """Find the last tensor that all paths lead through with only frozen layers before it.

    It does not change during fine-tuning, so that epochs can read it from the store. ``ref`` is the
    layer ref of the head. Returns the ref and the tensor, or (None, None).
    """
    names, own = set(backbone.layer_names), LayerRef.parse(ref)
    refs = {
        keras_name(info.name): info.name
        for info in backbone.layers()
        # Storing scaled images saves no work. The name of a layer that is called twice does not
        # say which of its calls is meant.
        if info.flops > 0 and f"{info.name}@2" not in names
    }
    refs["reduction" if own.reduction else keras_name(own.layer)] = ref
    graph = flatten(fused.model)
    last: tuple[str | None, Any] = (None, None)
    for node, through in zip(graph.nodes[1:], graph.bottlenecks()[1:], strict=True):
        layer = node.operation
        trained = getattr(layer, "trainable_variables", None)
        if layer.name not in fused.backbone_layers or trained:
            break
        if through and layer.name in refs:
            last = refs[layer.name], node.outputs[0]
    return last
