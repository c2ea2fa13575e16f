"""The options of fine-tuning: one object for Python, pipeline files, the command line and models.

Nothing heavy is imported here, so that ``--help`` and the check of a pipeline file stay quick.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from featurestore.settings import Settings

DEFAULT_EPOCHS = 3
# The head may move faster than weights that were trained on a million images.
HEAD_FACTOR = 10.0

Count = Annotated[int, Field(ge=1, lt=2**31)]


class FineTuning(Settings):
    """How to train a promoted model end to end; 0 epochs do not train it.

    Attributes
    ----------
    unfreeze : str or int, optional
        Layers of the backbone to train. A name: the first layer whose name begins with it, and all
        layers after it. A number: the last N layers. By default only the head is trained.
    epochs : int, optional
        Passes over the training rows; by default 3 with ``unfreeze``, else 0.
    learning_rate : float
        Learning rate of Adam for the last block of the backbone; the head's is ten times that.
    lr_decay : float
        Factor of the learning rate for each block before the last one, above 0 and at most 1.
    patience : int, optional
        Stop after this many epochs without a better one. By default all epochs run.
    keep_tuned : bool
        Keep the best epoch even if the model was better before the first one.
    batch_size : int
        Samples in a training batch.
    seed : int
        Seed of the order of the training rows, and of dropout.
    """

    unfreeze: int | str | None = None
    epochs: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience: Count | None = None
    keep_tuned: bool = False
    batch_size: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def passes(self) -> int:
        """Epochs to run."""
        if self.epochs is not None:
            return self.epochs
        return DEFAULT_EPOCHS if self.unfreeze is not None else 0
