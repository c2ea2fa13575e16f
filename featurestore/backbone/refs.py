"""Where to cut a backbone, and which of its layers to fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from featurestore.errors import BackboneError, UnknownLayerError, nearest

Reduction = Literal["avg", "max"]
REDUCTIONS: tuple[Reduction, ...] = ("avg", "max")


@dataclass(frozen=True, order=True)
class LayerRef:
    """A layer, and how to reduce its activation to one vector per sample.

    Attributes
    ----------
    layer : str
        Canonical name of a layer, as ``featurestore layers`` shows it.
    reduction : {"avg", "max"} or None
        Mean or maximum over all axes but sample and channel, without masked steps; None keeps the
        whole activation.

    Examples
    --------
    >>> LayerRef.parse("block5_pool:avg")
    LayerRef(layer='block5_pool', reduction='avg')
    >>> str(LayerRef("block4_pool"))
    'block4_pool'
    """

    layer: str
    reduction: Reduction | None = None

    @classmethod
    def parse(cls, text: str | LayerRef) -> LayerRef:
        """Read ``LAYER``, ``LAYER:avg`` or ``LAYER:max``.

        Raises
        ------
        BackboneError
            If the part after the colon is not a reduction, or the name is empty.
        """
        if isinstance(text, LayerRef):
            return text
        layer, colon, reduction = text.partition(":")
        if not layer or (colon and reduction not in REDUCTIONS):
            raise BackboneError(
                f"{text!r} is not a layer ref: expected LAYER, LAYER:avg or LAYER:max,"
                " for example block5_pool:avg"
            )
        return cls(layer, cast("Reduction", reduction) if colon else None)

    def __str__(self) -> str:
        return f"{self.layer}:{self.reduction}" if self.reduction else self.layer


def unfrozen(layers: Sequence[str], what: str | int) -> list[str]:
    """Return the layers that fine-tuning unfreezes, in order.

    Parameters
    ----------
    layers : sequence of str
        The backbone's layers up to the cut, first to last, as ``model.layers`` counts them.
    what : str or int
        A number of layers of any kind from the end, as in ``base.layers[-3:]``; or a layer's name
        or its beginning: every layer from the first match on.

    Raises
    ------
    UnknownLayerError
        If no layer's name begins like this.
    BackboneError
        If the number is not between one and the number of layers.

    Examples
    --------
    >>> names = ["block1_conv1", "block1_pool", "block2_conv1", "block2_pool"]
    >>> unfrozen(names, "block2")
    ['block2_conv1', 'block2_pool']
    >>> unfrozen(names, 1)
    ['block2_pool']
    """
    if isinstance(what, int) or what.strip().lstrip("-").isdigit():
        count = int(what)
        if not 1 <= count <= len(layers):
            raise BackboneError(
                f"cannot unfreeze the last {count} layers: the backbone has {len(layers)} up to"
                f" the cut, expected a number from 1 to {len(layers)}"
            )
        return list(layers[len(layers) - count :])
    names = list(layers)
    start = names.index(what) if what in names else None
    if start is None and what:
        start = next((i for i, name in enumerate(names) if name.startswith(what)), None)
    if start is None:
        raise UnknownLayerError(
            f"no layer to unfreeze from: no name up to the cut begins with {what!r};"
            f" {nearest(what, names)}"
        )
    return names[start:]
