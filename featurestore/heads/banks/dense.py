"""Ready-made Keras heads of one shape, trained as one model. Imports Keras and TensorFlow.

The weights of all heads are stacked, and so are the moments of their optimizers. Every head gets
the initial weights, the order of rows, the dropout masks and the optimizer steps that
`heads.training.train` gives it alone, so that its result is the same up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from featurestore.backbone.copying import seeded
from featurestore.errors import HeadError
from featurestore.heads.banks.vectors import Vectors
from featurestore.heads.candidate import Candidate
from featurestore.heads.estimator import Fitted
from featurestore.heads.events import EpochEnded
from featurestore.heads.head import forward_parts
from featurestore.heads.metrics import Predicted
from featurestore.heads.network import DenseOptions, Network
from featurestore.heads.rows import Rows
from featurestore.heads.training import DIVERGED, optimizer_config, scaling
from featurestore.listening import OnEvent

VARIES = frozenset({"learning_rate", "weight_decay", "dropout", "early_stopping"})
# Numbers in the weights of the heads that take a step together. With their gradients and moments
# they fit in the cache of a processor; more take longer for each head.
STACKED = 2**20
# Bytes of the batches that TensorFlow gets at a time.
SEGMENT = 32 * 2**20
# Compiled functions that are kept for heads of the same shape on as many rows.
COMPILED = 32


def takes(network: Network) -> bool:
    """Return whether a Keras head is trained here: a ready-made one with Adam, AdamW or SGD."""
    return (
        isinstance(network.options, DenseOptions)
        and (network.options.optimizer or "adam") in ("adam", "adamw", "sgd")
        and keras.config.backend() == "tensorflow"
        and keras.config.dtype_policy().name == "float32"
    )


def key(network: Network) -> str:
    """Return what heads that are trained together have in common, as text."""
    fields = network.options.fields()
    return repr([(name, fields[name]) for name in sorted(fields.keys() - VARIES)])


def train_together(
    candidates: Sequence[Candidate], rows: Rows, *, on_event: OnEvent
) -> list[Fitted | HeadError]:
    """Build and train heads of one `key`.

    Returns
    -------
    list of Fitted or HeadError
        The error of a head whose training diverged, which does not disturb the others.
    """
    members = [_Member.of(each, scaling(rows)) for each in candidates]
    vectors = Vectors(rows, members[0].options, members[0].model)
    most = max(1, STACKED // sum(map(np.size, members[0].model.get_weights())))
    for seed in dict.fromkeys(each.candidate.seed for each in members):
        alike = [each for each in members if each.candidate.seed == seed]
        for part in np.array_split(np.arange(len(alike)), -(-len(alike) // most)):
            _train([alike[number] for number in part], vectors, on_event)
    return [each.result(tuple(rows.features.classes)) for each in members]


def predict(
    models: Sequence[keras.Model], classes: Sequence[Any], x: np.ndarray
) -> Iterator[Predicted]:
    """Yield what each model predicts from features (row, …), which are pooled once.

    Labels and probabilities, float64; of a regression, values and None. Exactly the same as
    `Head.predict` and `Head.predict_proba`.
    """
    found: list[list[np.ndarray]] = [[] for _ in models]
    for part in forward_parts(x):
        inputs = part if part.ndim == 2 else models[0].layers[1](part)
        for outputs, model in zip(found, models, strict=True):
            output = inputs
            for layer in model.layers[1 if part.ndim == 2 else 2 :]:
                output = output if _is_dropout(layer) else layer(output)
            outputs.append(keras.ops.convert_to_numpy(output))
    for outputs in found:
        values = np.concatenate(outputs).astype(np.float64)
        yield (np.asarray(classes)[values.argmax(1)], values) if classes else (values[:, 0], None)


def _is_dropout(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Dropout)


@dataclass
class _Member:
    """A head while it is trained.

    Attributes
    ----------
    weights : list of numpy.ndarray
        Those to keep: of the best epoch if training may stop early, otherwise of the last.
    """

    candidate: Candidate
    options: DenseOptions
    model: keras.Model
    optimizer: Any
    history: dict[str, list[float]] = field(default_factory=dict)
    weights: list[np.ndarray] = field(default_factory=list)
    best: float | None = None
    waited: int = 0
    stopped: bool = False

    @classmethod
    def of(cls, candidate: Candidate, scale: tuple[float, float]) -> _Member:
        network = candidate.template
        with seeded(candidate.seed):
            model = network.build(*scale)
        optimizer = keras.optimizers.get(optimizer_config(network))
        return cls(candidate, network.options, model, optimizer)

    def end_epoch(self, logs: Mapping[str, float], weights: Sequence[np.ndarray]) -> None:
        """Record an epoch, and stop where Keras' ``EarlyStopping`` does."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        if not self.options.early_stopping:
            self.weights = list(weights)
            return
        self.waited += 1
        if self.best is None or logs["val_loss"] < self.best:
            self.best, self.waited = logs["val_loss"], 0
            self.weights = [each.copy() for each in weights]
        elif self.waited >= self.options.early_stopping:
            self.stopped = True

    def result(self, classes: tuple[Any, ...]) -> Fitted | HeadError:
        if not all(np.isfinite(array).all() for array in self.weights):
            params = json.dumps(self.candidate.params)
            return HeadError(f"head {self.candidate.name!r} with {params}: {DIVERGED}")
        self.model.set_weights(self.weights)
        return Fitted(self.model, classes, history=self.history)


def _train(members: Sequence[_Member], vectors: Vectors, on_event: OnEvent) -> None:
    """Train heads of one seed: they share batches and masks."""
    options, optimizer = members[0].options, members[0].optimizer
    arrays = zip(*(each.model.get_weights() for each in members), strict=True)
    weights = [tf.Variable(np.stack(each, axis=-2)) for each in arrays]
    rule: tuple[float, ...] = ()
    if isinstance(optimizer, keras.optimizers.Adam):
        rule = optimizer.beta_1, optimizer.beta_2, optimizer.epsilon
    moments = [[tf.Variable(tf.zeros_like(each)) for each in weights] for _ in rule[:2]]
    settings = {
        "rate": [float(each.optimizer.learning_rate) for each in members],
        "decay": [each.optimizer.weight_decay or 0.0 for each in members],
        "dropout": [each.options.dropout for each in members],
        "kept": [1 / (1 - each.options.dropout) for each in members],
    }
    columns = {name: np.array(each, np.float32)[:, None] for name, each in settings.items()}
    scale = None
    if vectors.rows.task == "regression":
        mean, deviation = scaling(vectors.rows)
        scale = tf.constant([mean, deviation or 1.0])
    batches, masks = (
        vectors.training(options.batch_size, members[0].candidate.seed),
        _mask_seeds(members),
    )
    width = vectors.width + len(masks) * max([0, *options.units])
    size = min(len(batches), max(1, SEGMENT // (4 * options.batch_size * width)))
    shapes = tuple(tuple(each.shape) for each in weights)
    # XLA takes a second to compile, which several heads win back.
    step = _steps(rule, (size, options.batch_size, *shapes, len(masks)), len(members) > 1)
    done = 0
    for epoch in range(options.epochs):
        sums: Any = 0.0
        # Keras ends one epoch before the first, which gives the rows another order.
        for count, segment in vectors.segments(batches, epoch + 1, size):
            noise = [
                _noise((size, options.batch_size, units))(tf.constant(mask), tf.constant(done))
                for mask, units in zip(masks, options.units, strict=False)
            ]
            found = step(
                weights, moments, columns, scale, segment, noise, *map(tf.constant, (done, count))
            )
            sums, done = sums + found.numpy().astype(np.float64), done + count
        logs = _named(sums, len(batches.rows), scale is None, "")
        if vectors.rows.count("val"):
            logs |= _validated(weights, vectors, scale)
        values = [each.numpy() for each in weights]
        for number, each in enumerate(members):
            if not each.stopped:
                its = {name: float(figures[number]) for name, figures in logs.items()}
                each.end_epoch(its, [array[..., number, :] for array in values])
                on_event(EpochEnded(each.candidate.id, epoch + 1, options.epochs, its))
        if all(each.stopped for each in members):
            return


def _mask_seeds(members: Sequence[_Member]) -> list[int]:
    """Return the seed of each dropout layer, the same in all heads that have any."""
    for each in members:
        if each.options.dropout:
            layers = filter(_is_dropout, each.model.layers)
            return [int(one.seed_generator.state.numpy()[0]) for one in layers]
    return []


def _named(sums: np.ndarray, rows: int, classes: bool, prefix: str) -> dict[str, np.ndarray]:
    """Return the figures of an epoch by Keras' names for them."""
    losses, right = sums / rows
    found = {f"{prefix}accuracy": right} if classes else {}
    return {**found, f"{prefix}loss": losses}


def _validated(
    weights: list[tf.Variable], vectors: Vectors, scale: tf.Tensor | None
) -> dict[str, np.ndarray]:
    sums: Any = 0.0
    for x, targets in vectors.validation():
        losses, right = _losses(_forward(weights, tf.constant(x)), tf.constant(targets), scale)
        sums = sums + np.stack([tf.reduce_sum(each, 0).numpy() for each in (losses, right)])
    return _named(sums, vectors.rows.count("val"), scale is None, "val_")


@lru_cache(maxsize=COMPILED)
def _steps(rule: tuple[float, ...], shapes: tuple[Any, ...], xla: bool) -> Any:
    """Return the compiled function that takes the optimizer's steps over some batches.

    ``rule`` has the constants of Adam, or none for stochastic gradient descent. TensorFlow warns of
    a function that is traced for many ``shapes``, so that each has its own. It returns the sums of
    the losses and of the correct predictions over the rows, (2, head).
    """

    def run(
        weights: list[tf.Variable],
        moments: list[list[tf.Variable]],
        columns: dict[str, tf.Tensor],
        scale: tf.Tensor | None,
        batches: dict[str, tf.Tensor],
        noise: list[tf.Tensor],
        done: tf.Tensor,
        count: tf.Tensor,
    ) -> tf.Tensor:
        def one(number: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            batch = {name: each[number] for name, each in batches.items()}
            masks = [
                tf.where(each[number][:, None] >= columns["dropout"], columns["kept"], 0.0)
                for each in noise
            ]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                output = _forward(weights, batch["x"], masks)
                losses, right = _losses(output, batch["targets"], scale)
                losses *= batch["weights"][:, None]
                rows = tf.reduce_sum(batch["counted"])
                # The weights of one head have no part in the losses of another.
                total = tf.reduce_sum(losses) / rows
            gradients = tape.gradient(total, weights)
            _update(rule, weights, moments, gradients, columns, done + number)
            right *= batch["counted"][:, None]
            return number + 1, sums + tf.stack([tf.reduce_sum(each, 0) for each in (losses, right)])

        heads = columns["rate"].shape[0]
        start = tf.constant(0), tf.zeros((2, heads))
        return tf.while_loop(lambda number, _: number < count, one, start)[1]

    return tf.function(run, jit_compile=xla, autograph=False)


def _forward(
    weights: Sequence[tf.Variable], x: tf.Tensor, masks: Sequence[tf.Tensor] = ()
) -> tf.Tensor:
    """Return the output of each head, (row, head, class).

    Kernels have the shape (feature, head, unit), biases (head, unit), masks (row, head, unit).
    """
    kernel, bias = weights[:2]
    flat = tf.matmul(x, tf.reshape(kernel, (kernel.shape[0], -1)))
    x = tf.reshape(flat, (-1, *bias.shape)) + bias
    for number in range(1, len(weights) // 2):
        x = tf.nn.relu(x)
        if masks:
            x *= masks[number - 1]
        kernel, bias = weights[2 * number : 2 * number + 2]
        x = tf.einsum("bhi,iho->bho", x, kernel) + bias
    return x


def _losses(
    output: tf.Tensor, targets: tf.Tensor, scale: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss, and whether the prediction is correct, of each row and head.

    ``scale`` has the mean and the standard deviation of a regression's output.
    """
    if scale is None:
        repeated = tf.repeat(targets[:, None], output.shape[1], axis=1)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(repeated, output)
        right = tf.argmax(output, axis=2, output_type=targets.dtype) == targets[:, None]
        return losses, tf.cast(right, tf.float32)
    values = output[..., 0] * scale[1] + scale[0]
    losses = tf.square(values - tf.cast(targets, tf.float32)[:, None])
    return losses, tf.zeros_like(losses)


def _update(
    rule: tuple[float, ...],
    weights: Sequence[tf.Variable],
    moments: Sequence[Sequence[tf.Variable]],
    gradients: Sequence[tf.Tensor],
    columns: Mapping[str, tf.Tensor],
    done: tf.Tensor,
) -> None:
    """Take one step as Keras' optimizers do, after ``done`` others."""
    rate = columns["rate"]
    for weight in weights:
        weight.assign_sub(weight * columns["decay"] * rate)
    if not rule:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(gradient * rate)
        return
    beta_1, beta_2, epsilon = rule
    number = tf.cast(done + 1, tf.float32)
    alpha = rate * tf.sqrt(1 - tf.pow(beta_2, number)) / (1 - tf.pow(beta_1, number))
    for weight, gradient, mean, square in zip(weights, gradients, *moments, strict=True):
        mean.assign_add((gradient - mean) * (1 - beta_1))
        square.assign_add((tf.square(gradient) - square) * (1 - beta_2))
        weight.assign_sub(mean * alpha / (tf.sqrt(square) + epsilon))


@lru_cache(maxsize=COMPILED)
def _noise(shape: tuple[int, int, int]) -> Any:
    """Return a function for the random numbers of a dropout layer of Keras, (step, row, unit).

    Its arguments are the seed of the layer, which draws one a step, and the steps done. XLA has
    other random numbers.
    """

    def run(seed: tf.Tensor, done: tf.Tensor) -> tf.Tensor:
        def one(step: tf.Tensor) -> tf.Tensor:
            return tf.random.stateless_uniform(shape[1:], tf.stack([seed, step]))

        return tf.map_fn(one, done + tf.range(shape[0]), fn_output_signature=tf.float32)

    return tf.function(run, autograph=False)
