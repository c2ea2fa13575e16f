"""The options of fine-tuning: one object for Python, pipeline files, the command line and models.

Nothing heavy is imported here, so that ``--help`` and the check of a pipeline file stay quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from featurestore.errors import BackboneError, UnknownLayerError, nearest
from featurestore.settings import Settings

DEFAULT_EPOCHS = 3
# The head may move faster than weights that were trained on a million images.
HEAD_FACTOR = 10.0

Count = Annotated[int, Field(ge=1, lt=2**31)]


class FineTuning(Settings):
    """How to train a promoted model end to end; 0 epochs do not train it.

    Adam trains; the learning rate of the head is ten times that of the backbone.
    """

    unfreeze: Annotated[int | str | None, Field(union_mode="left_to_right")] = None
    """Train the backbone too, from the first layer whose name begins with this text; or, if it is
    a number, its last layers. By default only the head is trained."""
    epochs: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Passes over the training images; by default 3 with an unfrozen backbone, else 0."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate of the backbone's last trained layer; the head's is ten times that."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each trained layer of the backbone to the one before it,
    such as 0.8 for transformers."""
    patience: Count | None = None
    """Stop after this number of epochs without improvement; by default all epochs run."""
    keep_tuned: bool = False
    """Write the fine-tuned model even if it is worse than before fine-tuning."""
    batch_size: Count = 32
    """Images in a training batch."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order of the training images, and of dropout."""

    @model_validator(mode="after")
    def _trains(self) -> Self:
        fields = ("learning_rate", "lr_decay", "patience", "keep_tuned")
        usual = type(self).model_fields
        others = [name for name in fields if getattr(self, name) != usual[name].default]
        if others and not self.passes:
            raise ValueError(f"{others[0]} has no effect, because nothing is trained; set epochs")
        return self

    @property
    def passes(self) -> int:
        """Epochs to run."""
        if self.epochs is not None:
            return self.epochs
        return DEFAULT_EPOCHS if self.unfreeze is not None else 0

    def unfrozen(self, layers: Sequence[str]) -> list[str]:
        """Return the layers that ``unfreeze`` selects, in order; none without it.

        Parameters
        ----------
        layers : sequence of str
            The backbone's layers up to the cut, first to last, as ``model.layers`` counts them.

        Raises
        ------
        UnknownLayerError
            If no layer's name begins like this.
        BackboneError
            If the number is not between one and the number of layers.

        Examples
        --------
        >>> names = ["block1_conv1", "block1_pool", "block2_conv1", "block2_pool"]
        >>> FineTuning(unfreeze="block2").unfrozen(names)
        ['block2_conv1', 'block2_pool']
        >>> FineTuning(unfreeze=1).unfrozen(names)
        ['block2_pool']
        """
        names, what = list(layers), self.unfreeze
        if what is None:
            return []
        if isinstance(what, int):
            if not 1 <= what <= len(names):
                raise BackboneError(
                    f"cannot unfreeze the last {what} layers: the backbone has {len(names)} up to"
                    f" the cut, expected a number from 1 to {len(names)}"
                )
            return names[-what:]
        # The layers of a promoted model have a dot where the backbone's have a slash.
        dotted, start = [name.replace("/", ".") for name in names], what.replace("/", ".")
        if start in dotted:
            return names[dotted.index(start) :]
        starts = [i for i, name in enumerate(dotted) if start and name.startswith(start)]
        if not starts:
            raise UnknownLayerError(
                f"no layer to unfreeze from: no name up to the cut begins with {what!r};"
                f" {nearest(what, names)}"
            )
        return names[starts[0] :]
