"""Where to cut a backbone, and how to reduce the activation there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from featurestore.errors import BackboneError, received

Reduction = Literal["avg", "max", "gem", "cls", "patchavg", "cls+patchavg"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
# Those of the tokens of a transformer.
TOKENS: tuple[Reduction, ...] = ("cls", "patchavg", "cls+patchavg")
# The power of the generalized mean, and the least value that it counts: Radenović, Tolias and
# Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.
GEM_POWER, GEM_LEAST = 3.0, 1e-6


@dataclass(frozen=True, order=True)
class LayerRef:
    """A layer, and how to reduce its activation to one vector per sample.

    Attributes
    ----------
    layer : str
        Canonical name of a layer, as ``featurestore layers`` shows it.
    reduction : str or None
        None keeps the whole activation.

        - ``avg``, ``max``: mean or maximum over all axes but sample and channel.
        - ``gem``: generalized mean over all positions but special tokens, ``mean(x³)^⅓``.
        - ``cls``: the class token.
        - ``patchavg``: mean of the tokens without special ones (class and register tokens).
        - ``cls+patchavg``: both, one after the other, as in the linear evaluation of DINOv2.

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
        """Read ``LAYER`` or ``LAYER:REDUCTION``.

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
                f"LAYER, or LAYER with :{', :'.join(REDUCTIONS)}; for example block5_pool:avg",
            )
        return cls(layer, cast("Reduction", reduction) if colon else None)

    def __str__(self) -> str:
        return f"{self.layer}:{self.reduction}" if self.reduction else self.layer

    def shape(self, whole: tuple[int, ...], special: int | None = None) -> tuple[int, ...]:
        """Return the shape of one sample's activation at this ref, given that of the layer.

        Parameters
        ----------
        whole : tuple of int
        special : int or None
            The number of special tokens at the beginning of a sequence, the class token first;
            None if the model does not say.

        Raises
        ------
        BackboneError
            If the layer gives one vector per sample already, or no tokens that the reduction needs.
        """
        if self.reduction is None:
            return whole
        if len(whole) < 2:
            raise BackboneError(
                f"layer {self.layer!r} gives one vector per sample already (shape {whole})",
                f"{self.layer} without :{self.reduction}",
            )
        if self.reduction in TOKENS:
            self._require_tokens(whole, special)
        return (whole[-1] * (2 if self.reduction == "cls+patchavg" else 1),)

    def _require_tokens(self, whole: tuple[int, ...], special: int | None) -> None:
        if len(whole) != 2:
            raise BackboneError(
                f"{str(self)!r} reduces tokens, and the layer gives {whole}",
                "an activation (token, channel)",
                f"reduce it with {self.layer}:avg",
            )
        if special is None:
            raise BackboneError(
                f"{str(self)!r} needs the number of special tokens, which the model does not say",
                remedy="pass --special-tokens N: 0, or the class token and the register tokens",
            )
        if special == 0 and "cls" in str(self.reduction):
            raise BackboneError(
                f"{str(self)!r} takes the class token, which the model does not have",
                remedy=f"reduce it with {self.layer}:patchavg",
            )

    def reduce(self, activation: Any, special: int | None) -> Any:
        """Reduce a tensor (batch, …), real or symbolic, to float32; parameters as of :meth:`shape`.

        The last operation on a symbolic tensor is called ``reduction``.
        """
        from keras import KerasTensor, layers, ops

        if self.reduction is None:
            return activation
        axes = tuple(range(1, len(activation.shape) - 1))
        if self.reduction in ("avg", "max"):
            kind = {"avg": "Average", "max": "Max"}[self.reduction]
            pooling = getattr(layers, f"Global{kind}Pooling{len(axes)}D")
            options = {"dtype": "float32", "data_format": "channels_last"}
            return pooling(name="reduction", **options)(activation)
        activation = ops.cast(activation, "float32")
        patches = activation[:, special:] if len(axes) == 1 and special else activation
        if self.reduction == "gem":
            powers = ops.power(ops.maximum(patches, GEM_LEAST), GEM_POWER)
            reduced = ops.power(ops.mean(powers, axis=axes), 1 / GEM_POWER)
        elif self.reduction == "cls":
            reduced = activation[:, 0]
        else:
            reduced = ops.mean(patches, axis=1)
            if self.reduction == "cls+patchavg":
                reduced = ops.concatenate([activation[:, 0], reduced], axis=-1)
        if isinstance(reduced, KerasTensor):
            reduced._keras_history.operation.name = "reduction"
        return reduced
