"""Where to cut a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from featurestore.errors import BackboneError, received

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
        if not isinstance(text, str):
            raise BackboneError(
                f"a layer ref is {received(text)}; expected text such as 'block5_pool:avg'"
            )
        layer, colon, reduction = text.partition(":")
        if not layer or (colon and reduction not in REDUCTIONS):
            raise BackboneError(
                f"{text!r} is not a layer ref: expected LAYER, LAYER:avg or LAYER:max,"
                " for example block5_pool:avg"
            )
        return cls(layer, cast("Reduction", reduction) if colon else None)

    def __str__(self) -> str:
        return f"{self.layer}:{self.reduction}" if self.reduction else self.layer
