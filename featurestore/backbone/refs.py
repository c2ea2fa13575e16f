"""Where to cut a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

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
        Mean or maximum over all axes but sample and channel; None keeps the whole activation.

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
                f"a layer ref is {received(text)}", "text such as 'block5_pool:avg'"
            )
        layer, colon, reduction = text.partition(":")
        if not layer or (colon and reduction not in REDUCTIONS):
            raise BackboneError(
                f"{text!r} is not a layer ref",
                "LAYER, LAYER:avg or LAYER:max, for example block5_pool:avg",
            )
        return cls(layer, cast("Reduction", reduction) if colon else None)

    def __str__(self) -> str:
        return f"{self.layer}:{self.reduction}" if self.reduction else self.layer

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one sample's activation at this ref, given that of the layer.

        Raises
        ------
        BackboneError
            If the layer gives one vector per sample already.
        """
        if self.reduction is None:
            return whole
        if len(whole) < 2:
            raise BackboneError(
                f"layer {self.layer!r} gives one vector per sample already (shape {whole})",
                f"{self.layer} without :{self.reduction}",
            )
        return whole[-1:]

    def reducing(self, rank: int) -> Any:
        """Return the Keras layer that reduces an activation of ``rank`` axes, or None."""
        import keras

        if self.reduction is None:
            return None
        kind = {"avg": "Average", "max": "Max"}[self.reduction]
        layer = getattr(keras.layers, f"Global{kind}Pooling{rank - 2}D")
        return layer(name="reduction", dtype="float32", data_format="channels_last")
