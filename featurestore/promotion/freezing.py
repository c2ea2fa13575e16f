"""Which layers of a fused model train, at which rate, and from which stored features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from featurestore.backbone import LayerRef
from featurestore.backbone.graph import RESERVED, flatten
from featurestore.promotion.fine_tuning import HEAD_FACTOR, FineTuning
from featurestore.promotion.fuse import Fused

if TYPE_CHECKING:
    from featurestore.backbone import Backbone

HEAD = "head"
# Names of repeated parts in network families, with a number: block5, conv5_block3, stage_2.
_BLOCK = re.compile(
    r".*(?:block|stage|stack|layer|cell|group|expanded_conv)s?[_/.]?\d+[a-z]?(?![0-9a-z])", re.I
)


def unfrozen_layers(fused: Fused, options: FineTuning) -> list[str]:
    """Return the names of the backbone's layers that ``FineTuning.unfreeze`` selects."""
    names = set(fused.backbone_layers) - set(RESERVED)
    return options.unfrozen([each.name for each in fused.model.layers if each.name in names])


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


def block(layer: str) -> str:
    """Return the block of a layer by its name; a layer without one is its own block.

    Examples
    --------
    >>> [block(each) for each in ("block5_conv1", "conv5_block3_2_conv", "block_13_expand")]
    ['block5', 'conv5_block3', 'block_13']
    >>> block("convnext_tiny_stage_3_block_2_pointwise_conv_1"), block("top_conv")
    ('convnext_tiny_stage_3_block_2', 'top_conv')
    """
    found = _BLOCK.match(layer)
    return found[0] if found else layer


def rates(fused: Fused, options: FineTuning) -> dict[str, float]:
    """Return the learning rates of the head and of each trained block, last block first.

    The last block learns at ``learning_rate``, each one before at ``lr_decay`` times the rate of
    the next.
    """
    trained = [each.name for each in fused.model.layers if each.trainable_variables]
    blocks = [block(name) for name in trained if name in fused.backbone_layers]
    found = {}
    if len(blocks) < len(trained):
        found[HEAD] = HEAD_FACTOR * options.learning_rate
    rate = options.learning_rate
    for name in dict.fromkeys(reversed(blocks)):
        found[name] = rate
        rate *= options.lr_decay
    return found


def boundary(fused: Fused, stored: Mapping[str, str]) -> tuple[str, Any] | None:
    """Find the last tensor that all paths lead through with only frozen layers before it.

    It does not change during fine-tuning, so that epochs can read it from the store. ``stored`` is
    the layer ref of a layer's output, by the layer's name. Returns the ref and the tensor, or None.
    """
    graph = flatten(fused.model)
    found = None
    for node, through in zip(graph.nodes[1:], graph.bottlenecks()[1:], strict=True):
        layer = node.operation
        trained = getattr(layer, "trainable_variables", None)
        if layer.name not in fused.backbone_layers or trained:
            break
        if through and layer.name in stored:
            found = stored[layer.name], node.outputs[0]
    return found


def boundary_ref(backbone: Backbone, ref: str, options: FineTuning) -> str | None:
    """Return the layer ref that fine-tuning of any head at a cut reads, as `boundary` finds it."""
    base = backbone.cut(ref)
    names = tuple(operation.name for operation in base.operations)
    # The layers of a head come after all that counts here.
    cut = Fused(base, names[-1], names[-1], names)
    freeze(cut, unfrozen_layers(cut, options))
    found = boundary(cut, stored_refs(ref, backbone))
    return None if found is None else found[0]


def stored_refs(ref: str, backbone: Backbone) -> dict[str, str]:
    """Return the layer refs of the outputs that are worth storing, by layer name."""
    names = set(backbone.layer_names)
    refs = {
        info.name: info.name
        for info in backbone.layers()
        # Storing scaled images saves no work. The name of a layer that is called twice does not
        # say which of its calls is meant.
        if info.flops > 0 and f"{info.name}@2" not in names
    }
    own = LayerRef.parse(ref)
    return {**refs, "reduction" if own.reduction else own.layer: ref}
