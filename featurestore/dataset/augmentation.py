"""Views: random Keras layers on the training images, as further samples of an augmented data set.

The digest of a view is of its image, the layers and its number, and the layers draw from this
digest alone. So a view is the same in every process and beside any number of other views.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featurestore.dataset.samples import Listing, Samples
from featurestore.dataset.splits import SPLITS
from featurestore.digests import digest_fields, distinct, packed, row_id, sortable, unpacked
from featurestore.errors import DatasetError, InputError, nearest, one_line, received
from featurestore.quiet import load_tensorflow

#: Columns of the manifest: the digest of the image that a view is of, and the view's number.
#: Both are empty for an image.
VIEW_OF, VIEW = "view_of", "view"
# Side of the noise that layers are tried on.
_SIDE = 32
# Number of views on noise that must not all be equal.
_TRIES = 100
# Settings that do not change a view: the layers compute in float32, from seeds of the view's own.
_IGNORED = ("name", "trainable", "dtype", "seed")


def canonical(augmentation: Any) -> str:
    """Check augmentation layers, and return them with all their settings as a JSON list.

    Parameters
    ----------
    augmentation : list, keras.layers.Layer, keras.Sequential, str or path
        Keras layers, their names, or ``{name: settings}``; one of these; a YAML or JSON file of
        them, or such a list as text.

    Raises
    ------
    InputError
        If a layer is not one of Keras' random image layers, changes the size of an image, or
        leaves every image as it is.

    Examples
    --------
    >>> canonical("[{RandomFlip: {mode: vertical}}]")
    '[{"RandomFlip": {"data_format": "channels_last", "mode": "vertical"}}]'
    """
    load_tensorflow()
    if isinstance(augmentation, str | os.PathLike):
        augmentation = _read(os.fspath(augmentation))
    if isinstance(augmentation, str | Mapping) or not isinstance(augmentation, Iterable):
        augmentation = getattr(augmentation, "layers", [augmentation])
    layers = [_layer(part) for part in augmentation]
    if not layers:
        raise InputError("the augmentation has no layers", "at least one, such as '[RandomFlip]'")
    settings = [{type(layer).__name__: _settings(layer)} for layer in layers]
    for part in settings:
        _check(_layer(part))
    return json.dumps(settings)


def _read(text: str) -> Any:
    inline = text.lstrip()[:1] in ("[", "{", "-")
    try:
        return yaml.safe_load(text if inline else Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read the augmentation {text[:80]!r}: {one_line(error)}",
            "a YAML or JSON file, or a list such as '[RandomFlip]'",
        ) from None


def _layer(part: Any) -> Any:
    """Build a new layer from a layer, a name, or a name with settings."""
    import keras

    if isinstance(part, keras.layers.Layer) and type(part).__module__.startswith("keras."):
        part = {type(part).__name__: _settings(part)}
    layer = {part: None} if isinstance(part, str) else part
    is_pair = isinstance(layer, Mapping) and len(layer) == 1
    ((name, settings),) = layer.items() if is_pair else ((None, None),)
    if not isinstance(name, str) or not isinstance(settings, Mapping | None):
        raise InputError(
            f"an augmentation layer is {received(part)}",
            "a Keras layer, the name of one, or {NAME: SETTINGS}, such as "
            "{RandomRotation: {factor: 0.05}}",
        )
    # Other layers might load code; a crop changes the size of the image.
    allowed = {kind for kind in dir(keras.layers) if kind.startswith("Rand")} - {"RandomCrop"}
    if name not in allowed:
        crop = "to crop, use RandomZoom or RandomTranslation" if name == "RandomCrop" else ""
        raise InputError(
            f"{name!r} is not an augmentation layer",
            "a random image layer of Keras that keeps the size of the image",
            crop or nearest(name, sorted(allowed)),
        )
    kind, settings = getattr(keras.layers, name), dict(settings or {})
    missing = [
        setting
        for setting, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and setting not in settings
    ]
    if missing:
        example = ", ".join(f"{setting}: 0.2" for setting in missing)
        raise InputError(
            f"augmentation layer {name!r} needs {' and '.join(missing)}",
            remedy=f"give its settings, such as {{{name}: {{{example}}}}}",
        )
    try:
        return kind(**{**settings, "dtype": "float32"})
    except Exception as error:  # Keras raises a dozen kinds
        raise InputError(f"augmentation layer {name!r}: {one_line(error)}") from error


def _settings(layer: Any) -> dict[str, Any]:
    """Return the settings of a layer as JSON values."""
    config = {name: value for name, value in layer.get_config().items() if name not in _IGNORED}
    try:
        text = json.dumps(config, sort_keys=True)
    except (TypeError, ValueError):
        text = "{"
    if "{" in text[1:]:  # another layer or object
        raise InputError(
            f"augmentation layer {type(layer).__name__!r} contains another layer or object",
            "settings that are numbers, text or lists",
            "list the layers one after the other",
        )
    return json.loads(text)


def _check(layer: Any) -> None:
    """Try a layer on noise; raise InputError if it fails, or gives no views of the same kind."""
    import keras

    name = f"augmentation layer {type(layer).__name__!r}"
    noise = np.random.default_rng(0).integers(0, 256, (1, _SIDE, _SIDE, 3)).astype(np.float32)

    def call(seed: int = 0) -> np.ndarray:
        return np.rint(keras.ops.convert_to_numpy(_call(layer, noise, _seeds(seed, layer))))

    try:
        layer(noise, training=True)  # builds it
        first = call()
    except Exception as error:  # Keras and TensorFlow raise dozens
        raise InputError(f"{name} does not take an image: {one_line(error)}") from error
    if not np.isfinite(first).all() or np.abs(first).max() <= 1:
        raise InputError(
            f"{name} gives values of {np.nanmin(first):.3g} to {np.nanmax(first):.3g}",
            "0 to 255, as images have",
            "set value_range=(0, 255)",
        )
    if all(np.array_equal(first, call(seed)) for seed in range(1, _TRIES)):
        raise InputError(f"{name} has no effect at these settings", remedy="leave it out")


@lru_cache(maxsize=2)
def compiled(layers: str, size: tuple[int, int]) -> Callable[[np.ndarray, str], np.ndarray]:
    """Compile layers, in canonical form, for images of one size (height, width).

    Returns
    -------
    callable
        From an image, uint8 (height, width, channel=3), and the digest of a view of it to the view:
        the layers compute on 0 to 255 as float32; their result is rounded and clipped. Many threads
        may call it.
    """
    load_tensorflow()
    import tensorflow as tf

    built, shape = [_layer(part) for part in json.loads(layers)], (1, *size, 3)

    def compute(image: Any, seeds: Any) -> Any:
        values, unused = tf.cast(image, tf.float32), list(tf.unstack(seeds))
        for layer in built:
            values = _call(layer, values, [unused.pop() for _ in _states(layer)])
        return tf.cast(tf.clip_by_value(tf.round(tf.cast(values, tf.float32)), 0, 255), tf.uint8)

    with tf.device("CPU:0"):
        for layer in built:
            layer(np.zeros(shape, np.float32), training=True)  # builds it
        function = tf.function(compute, autograph=False).get_concrete_function(
            tf.TensorSpec(shape, tf.uint8),
            tf.TensorSpec((sum(len(_states(layer)) for layer in built), 2), tf.int64),
        )

    def view(image: np.ndarray, digest: str) -> np.ndarray:
        with tf.device("CPU:0"):
            seeds = tf.constant(_seeds(int.from_bytes(row_id(digest), "big"), *built))
            return function(tf.constant(image[None]), seeds).numpy()[0]

    return view


def _states(layer: Any) -> list[Any]:
    """Return the states of a layer's seed generators: Keras' ``variables`` beside its weights."""
    weights = {id(weight) for weight in layer.weights}
    return [state for state in layer.variables if id(state) not in weights]


def _seeds(seed: int, *layers: Any) -> np.ndarray:
    """Return states of all seed generators, int64 (generator, 2): two numbers of 31 bits."""
    count = sum(len(_states(layer)) for layer in layers)
    words = np.random.SeedSequence(seed).generate_state(2 * count)
    return (words.reshape(count, 2) >> 1).astype(np.int64)


def _call(layer: Any, values: Any, seeds: Iterable[Any]) -> Any:
    import keras

    with keras.StatelessScope(zip(_states(layer), seeds, strict=True)):
        return layer(values, training=True)


def with_views(samples: Samples, layers: str, views: int, name: str) -> Samples:
    """Return samples and views 1 to ``views`` of each training sample.

    A view has the label and the split of its image, and the group too, or else its image is its
    group. It is listed after all images, with the path of its image.
    """
    import pyarrow as pa

    listing, images, listed = samples.listing, len(samples.digests), len(samples.listing.rows)
    if VIEW_OF in listing.columns:
        raise DatasetError(f"{name!r} is an augmented data set", remedy="augment the plain one")
    if VIEW in listing.columns:
        raise DatasetError(
            f"{name!r} has a column {VIEW!r}, which holds the number of a view",
            remedy="rename it and scan again",
        )
    train = np.flatnonzero(samples.splits == SPLITS.index("train"))
    if not len(train):
        raise DatasetError(
            f"data set {name!r} has no training samples, which views are made of",
            remedy="split it again with `featurestore scan --val F --test F`",
        )
    of, number = np.repeat(train, views), np.tile(np.arange(1, views + 1), len(train))
    digests = [*unpacked(samples.digests)]
    augmentation = digest_fields({"layers": json.loads(layers)})
    view_digests = packed(
        digest_fields({"image": digests[row], "augmentation": augmentation, "view": view})
        for row, view in zip(of.tolist(), number.tolist(), strict=True)
    )
    ordered, first, row_of = distinct(np.concatenate([samples.digests, view_digests]))
    image = np.concatenate([np.arange(images), of])[first]
    places = np.concatenate([np.arange(listed), samples.first[of]])
    columns = {name: column.take(places) for name, column in listing.columns.items()}
    empty = pa.nulls(listed, pa.string()), pa.nulls(listed, pa.int64())
    columns[VIEW_OF] = pa.chunked_array([empty[0], pa.array([digests[row] for row in of.tolist()])])
    columns[VIEW] = pa.chunked_array([empty[1], pa.array(number, pa.int64())])
    rows = np.where(listing.rows < 0, -1, row_of[listing.rows])
    groups = np.array(digests, object) if samples.groups is None else samples.groups
    return Samples(
        ordered,
        np.concatenate([samples.first, np.arange(listed, listed + len(of))])[first],
        samples.labels.of_rows(image),
        samples.splits[image],
        groups[image],
        Listing(
            np.concatenate([rows, row_of[images:]]),
            None if listing.paths is None else listing.paths.take(places),
            columns,
        ),
        samples.problems,
    )


def removed_images(augmented: Samples, plain: Samples) -> np.ndarray:
    """Return the rows of images that the plain data set no longer has, int64 (image,)."""
    images = np.flatnonzero(image_rows(augmented) == np.arange(len(augmented.digests)))
    present = np.isin(sortable(augmented.digests[images]), sortable(plain.digests))
    return images[~present]


def image_rows(samples: Samples) -> np.ndarray:
    """Return the row of the image that each sample is a view of, its own for an image: (row,)."""
    rows = np.arange(len(samples.digests))
    if (column := samples.listing.columns.get(VIEW_OF)) is not None:
        of = column.take(samples.first)
        views = np.flatnonzero(of.is_valid())
        images = sortable(packed(of.drop_null().to_pylist()))
        rows[views] = np.searchsorted(sortable(samples.digests), images)
    return rows
