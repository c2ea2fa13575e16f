"""Fine-tuning end to end: BatchNorm at rest, a rate for each block, the best epoch kept."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np

from featurestore.backbone.graph import flatten
from featurestore.features.batches import Batches
from featurestore.features.py_dataset import BatchDataset
from featurestore.promotion.fine_tuning import HEAD_FACTOR, FineTuning

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

HEAD = "head"
# What families call the parts that they repeat, with its number: block5, conv5_block3, stage_2.
_BLOCK = re.compile(
    r".*(?:block|stage|stack|layer|cell|group|expanded_conv)s?[_/.]?\d+[a-z]?(?![0-9a-z])", re.I
)


class RatesAdam(keras.optimizers.Adam):
    """Adam with a rate for each variable.

    Scaling their gradients would not do: Adam divides by their magnitude.

    Parameters
    ----------
    variables : sequence of keras.Variable
    factors : sequence of float or numpy.ndarray
        For each variable, its rate as a share of the learning rate, or that of each of its rows; 1
        for any other.
    **kwargs
        As :class:`keras.optimizers.Adam`.
    """

    def __init__(self, variables: Sequence[Any], factors: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keys = map(self._var_key, variables)
        self._factors = dict(zip(keys, factors, strict=True))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable, at its own rate."""
        factor = self._factors.get(self._var_key(variable), 1.0)
        super().update_step(gradient, variable, learning_rate * factor)


def block(layer: str) -> str:
    """Return the block that a layer belongs to, by its name; a name without one is its own block.

    Examples
    --------
    >>> [block(each) for each in ("block5_conv1", "conv5_block3_2_conv", "block_13_expand")]
    ['block5', 'conv5_block3', 'block_13']
    >>> block("convnext_tiny_stage_3_block_2_pointwise_conv_1"), block("top_conv")
    ('convnext_tiny_stage_3_block_2', 'top_conv')
    """
    found = _BLOCK.match(layer)
    return found[0] if found else layer


def rates(
    model: keras.Model, backbone_layers: Collection[str], options: FineTuning
) -> dict[str, float]:
    """Return the rate of the head and of each block of the backbone that is trained, last first.

    Parameters
    ----------
    model : keras.Model
        Fused, with what shall not move frozen.
    backbone_layers : collection of str
        Names of its layers that come from the backbone.
    options : FineTuning
        The last block learns at ``learning_rate``, each one before at ``lr_decay`` times the rate
        of the next.

    Returns
    -------
    dict of str to float
    """
    trained = [each for each in model.layers if each.trainable_variables]
    blocks = [block(each.name) for each in trained if each.name in backbone_layers]
    found = {}
    if len(blocks) < len(trained):
        found[HEAD] = HEAD_FACTOR * options.learning_rate
    rate = options.learning_rate
    for name in dict.fromkeys(reversed(blocks)):
        found[name] = rate
        rate *= options.lr_decay
    return found


@dataclass
class Tuned:
    """What fine-tuning did.

    Attributes
    ----------
    history : list of dict
        Loss and metrics of each epoch.
    start : dict of str to float
        ``val_loss`` (and ``val_accuracy``) before the first epoch; empty without validation rows.
    kept_epoch : int
        The epoch whose weights the model has, from 1; 0 if none was better than the start.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    kept_epoch: int = 0


@dataclass(frozen=True)
class ImageRows:
    """Images of a data set at the size that a backbone takes, as rows to be batched.

    Parameters
    ----------
    dataset : Dataset
    backbone : Backbone
    """

    dataset: Dataset
    backbone: Backbone
    # Content order is a shuffle already, and no two images are read together.
    block_rows: ClassVar[int] = 1
    dtype: ClassVar[np.dtype] = np.dtype("uint8")

    @property
    def shape(self) -> tuple[int, ...]:
        """(row, height, width, channel=3)."""
        return len(self.dataset), *self.backbone.input_size, 3

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Decode and resize images, uint8 (row, height, width, channel=3)."""
        with ThreadPoolExecutor(os.cpu_count(), "decode") as pool:
            resize = self.backbone.resize
            return np.stack([*pool.map(lambda row: self.dataset.image(int(row), resize), rows)])


def labelled_images(
    dataset: Dataset, backbone: Backbone, split: str, batch_size: int, **order: Any
) -> BatchDataset:
    """Return batches of the labelled images of a split, and their targets."""
    rows = dataset.rows(split, labelled=True)
    batches = Batches(
        ImageRows(dataset, backbone), rows, dataset.targets[rows], batch_size, **order
    )
    return BatchDataset(batches)


def freeze(model: keras.Model, backbone_layers: Sequence[str], unfrozen: Sequence[str]) -> None:
    """Freeze the backbone but for some layers; BatchNorm and preprocessing always.

    BatchNorm layers are frozen by ``trainable = False``, which alone keeps their statistics: a
    ``training=False`` at call time is overridden inside ``fit``.

    Parameters
    ----------
    model : keras.Model
        A fused model.
    backbone_layers : sequence of str
        Names of the backbone's layers in it, preprocessing included.
    unfrozen : sequence of str
        Those to train.
    """
    frozen = set(backbone_layers) - set(unfrozen)
    for layer in model.layers:
        still = isinstance(layer, keras.layers.BatchNormalization | keras.layers.Normalization)
        layer.trainable = not still and layer.name not in frozen


def boundary(
    model: keras.Model, backbone_layers: Collection[str], stored: Mapping[str, str]
) -> tuple[str, Any] | None:
    """Find the last tensor that all paths lead through and before which all is frozen.

    It never changes while the model is tuned, so that it can be read from the store instead of
    being computed again in every epoch.

    Parameters
    ----------
    model : keras.Model
        Fused, with what shall not move frozen.
    backbone_layers : collection of str
        Names of its layers and operations that come from the backbone.
    stored : mapping of str to str
        The layer ref that stores what a layer gives, by the layer's name.

    Returns
    -------
    (ref, tensor) or None
        None where there is no such tensor.
    """
    graph = flatten(model)
    found = None
    for node, through in zip(graph.nodes[1:], graph.bottlenecks()[1:], strict=True):
        layer = node.operation
        if layer.name not in backbone_layers or getattr(layer, "trainable_variables", None):
            break
        if through and layer.name in stored:
            found = stored[layer.name], node.outputs[0]
    return found


def verdict(tuned: Tuned, options: FineTuning) -> str:
    """Return in one line what became of fine-tuning, against the model as it was before."""
    ran, kept = len(tuned.history), tuned.kept_epoch
    if not tuned.start:
        return (
            f"kept epoch {kept} of {ran}, the last: there are no validation rows to choose an "
            "epoch by, or to see whether fine-tuning made the model worse; split some off with "
            "`featurestore scan --val 0.2`"
        )
    losses = [each["val_loss"] for each in tuned.history]
    least = min((each for each in losses if not math.isnan(each)), default=losses[0])
    epoch = kept or losses.index(least) + 1
    figures = ", ".join(
        f"{name} {tuned.history[epoch - 1][name]:.3f} ({before:.3f} before)"
        for name, before in tuned.start.items()
    )
    if not kept:
        return (
            f"fine-tuning made the model worse: epoch {epoch} of {ran} gave {figures}; kept the "
            "model as it was before (`keep_tuned` overrides; a lower learning rate may help)"
        )
    return f"kept epoch {kept} of {ran}: {figures}{', worse, as asked' if _worse(tuned) else ''}"


def _worse(tuned: Tuned) -> bool:
    kept, start = tuned.history[tuned.kept_epoch - 1], tuned.start
    accuracy = kept.get("val_accuracy", 0.0) < start.get("val_accuracy", 0.0)
    return accuracy or kept["val_loss"] >= start["val_loss"]


def fine_tune(
    model: keras.Model,
    backbone_layers: Collection[str],
    of_block: Mapping[str, float],
    train: keras.utils.PyDataset,
    validation: keras.utils.PyDataset | None,
    options: FineTuning,
    *,
    steps: Mapping[str, np.ndarray],
    on_epoch: Callable[[int, dict[str, float]], None],
) -> Tuned:
    """Train the unfrozen layers in place, and keep the best epoch.

    The best is the epoch with the lowest validation loss. The model as it was counts as epoch 0,
    and an epoch with a lower validation accuracy than that is no candidate. Without validation
    rows, the last epoch is kept.

    Parameters
    ----------
    model : keras.Model
        A fused model, or what comes after its boundary; with what shall not move frozen.
    backbone_layers : collection of str
        Names of the layers that come from the backbone; the others are the head's.
    of_block : mapping of str to float
        What :func:`rates` gave.
    train, validation : keras.utils.PyDataset
        Batches of inputs and targets: codes of classes, or values.
    options : FineTuning
    steps : mapping of str to numpy.ndarray
        As :attr:`Fused.steps`.
    on_epoch : callable
        Receives the number of the epoch, from 1, and its measures.

    Returns
    -------
    Tuned
    """
    classify = model.output_shape[-1] > 1
    model.compile(
        _optimizer(model, backbone_layers, of_block, steps),
        loss="sparse_categorical_crossentropy" if classify else "mean_squared_error",
        metrics=["accuracy"] if classify else [],
        # XLA is many times slower for depthwise networks on a CPU.
        jit_compile=False,
    )
    tuned = Tuned(kept_epoch=options.passes)
    callbacks: list[Any] = [_Told(tuned, on_epoch)]
    if validation is not None:
        logs = model.evaluate(validation, verbose=0, return_dict=True)
        tuned.start = {f"val_{name}": float(value) for name, value in logs.items()}
        callbacks.append(_BestEpoch(tuned, options))
    model.fit(
        train,
        validation_data=validation,
        epochs=options.passes,
        # Keras would shuffle the batches once more, by no seed of ours.
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return tuned


def _optimizer(
    model: keras.Model,
    backbone_layers: Collection[str],
    of_block: Mapping[str, float],
    steps: Mapping[str, np.ndarray],
) -> RatesAdam:
    fastest = max(of_block.values())
    variables: list[Any] = []
    factors: list[Any] = []
    for layer in model.layers:
        name = block(layer.name) if layer.name in backbone_layers else HEAD
        for variable in layer.trainable_variables:
            variables.append(variable)
            # A scaler is folded into this kernel: it learns as if it stood behind the scaler.
            step = steps.get(layer.name) if variable is getattr(layer, "kernel", None) else None
            factors.append(of_block[name] / fastest * (1.0 if step is None else step))
    return RatesAdam(variables, factors, learning_rate=fastest)


class _Told(keras.callbacks.Callback):
    """Hands on and records the measures of each epoch."""

    def __init__(self, tuned: Tuned, on_epoch: Callable[[int, dict[str, float]], None]) -> None:
        super().__init__()
        self._tuned, self._on_epoch = tuned, on_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        found = {name: float(value) for name, value in (logs or {}).items()}
        self._tuned.history.append(found)
        self._on_epoch(epoch + 1, found)


class _BestEpoch(keras.callbacks.Callback):
    """Gives the model the weights of its best epoch; Keras' own callbacks know no epoch 0."""

    def __init__(self, tuned: Tuned, options: FineTuning) -> None:
        super().__init__()
        self._tuned, self._options = tuned, options

    def on_train_begin(self, logs: Any = None) -> None:
        start = self._tuned.start
        self._tuned.kept_epoch = 0
        self._least = float("inf") if self._options.keep_tuned else start["val_loss"]
        self._best = self._values()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        logs, start = logs or {}, self._tuned.start
        worse = logs.get("val_accuracy", 0.0) < start.get("val_accuracy", 0.0)
        if logs["val_loss"] < self._least and (self._options.keep_tuned or not worse):
            self._tuned.kept_epoch, self._least = epoch + 1, logs["val_loss"]
            self._best = self._values()
        patience = self._options.patience
        if patience is not None and epoch + 1 - self._tuned.kept_epoch >= patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        for weight, value in zip(self._weights(), self._best, strict=True):
            weight.assign(value)

    def _weights(self) -> list[Any]:
        # Those of the other layers do not move.
        layers = [each for each in self.model.layers if each.trainable_variables]
        return [weight for layer in layers for weight in layer.weights]

    def _values(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(each).copy() for each in self._weights()]
