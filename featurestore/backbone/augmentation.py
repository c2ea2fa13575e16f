"""Augmented views: the user's Keras layers on a resized image, the same in every process.

A view is a function of the pixels and the number of the view alone. Keras layers draw from seed
generators, whose states are variables: each call gets states of its own, made of the digest of the
pixels and the number. So any view can be computed again alone, by any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featurestore.digests import digest_array, digest_fields, row_id
from featurestore.errors import BackboneError, InputError, nearest, one_line, received
from featurestore.quiet import load_tensorflow

# Times that a layer is tried until two results differ: rare changes count as random too.
TRIES = 100


def serialize(augmentation: Any) -> list[dict[str, Any]]:
    """Return augmentation layers as JSON values, from which Keras builds them again.

    Parameters
    ----------
    augmentation : list, keras.layers.Layer, keras.Sequential, str or path
        Keras layers, names of layers, or ``{name: settings}``; one of these; or a YAML, JSON or
        ``.keras`` file of them, or a YAML or JSON list as text.

    Raises
    ------
    InputError
        If it is none of these, or a layer cannot be built or described.
    """
    load_tensorflow()
    import keras

    if isinstance(augmentation, str | os.PathLike):
        augmentation = _read(os.fspath(augmentation))
    if isinstance(augmentation, keras.Model):
        augmentation = [x for x in augmentation.layers if type(x).__name__ != "InputLayer"]
    if isinstance(augmentation, str | Mapping) or not isinstance(augmentation, Iterable):
        augmentation = [augmentation]
    layers = [_layer(each) for each in augmentation]
    if not layers:
        raise InputError("the augmentation has no layers; give some, such as '[RandomFlip]'")
    try:
        found = [json.loads(json.dumps(keras.saving.serialize_keras_object(x))) for x in layers]
        fields(found)
    except Exception as error:  # whatever get_config raises, or json of what it returns
        raise InputError(f"the augmentation cannot be recorded: {one_line(error)}") from error
    return found


def _read(text: str) -> Any:
    from featurestore.backbone.sources import load_model

    inline = text.lstrip()[:1] in ("[", "{", "-")
    if Path(text).suffix == ".keras":
        return load_model(text)
    try:
        return yaml.safe_load(text if inline else Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read the augmentation {text[:80]!r}: {one_line(error)}; expected a YAML, JSON "
            "or .keras file, or a list such as '[RandomFlip]'"
        ) from None


def _layer(given: Any) -> Any:
    """Return a layer unchanged, or build one from a name, with settings, or a configuration."""
    import keras

    if isinstance(given, keras.layers.Layer):
        return given
    if isinstance(given, Mapping) and "class_name" in given:
        return _built(given)
    pair = {given: None} if isinstance(given, str) else given
    is_pair = isinstance(pair, Mapping) and len(pair) == 1
    ((name, settings),) = pair.items() if is_pair else ((None, None),)
    if not isinstance(name, str) or not isinstance(settings, Mapping | None):
        raise InputError(
            f"an augmentation layer is {received(given)}; expected a Keras layer, the name of one, "
            "or {NAME: SETTINGS}, such as {RandomRotation: {factor: 0.05}}"
        )
    kind = getattr(keras.layers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, keras.layers.Layer):
        known = [each for each in dir(keras.layers) if each.startswith("Rand")]
        raise InputError(f"no Keras layer {name!r}; {nearest(name, known)}")
    try:
        return kind(**(settings or {}))
    except Exception as error:  # Keras raises a dozen kinds
        raise InputError(f"augmentation layer {name!r}: {one_line(error)}") from error


def _built(config: Mapping[str, Any]) -> Any:
    """Build a layer from its configuration: a Keras layer, or registered code of the user."""
    import keras

    try:
        layer = keras.saving.deserialize_keras_object(dict(config), safe_mode=True)
    except Exception as error:  # Keras raises a dozen kinds
        raise InputError(
            f"augmentation layer {title([config])[:80]!r} cannot be built from its configuration: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(layer, keras.layers.Layer):
        raise InputError(f"an augmentation layer is {received(layer)}; expected a Keras layer")
    return layer


def title(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the names of layers, serialized or in canonical form, joined by ``+``.

    Examples
    --------
    >>> title([{"class_name": "RandomFlip", "config": {}}, {"class_name": "RandomZoom"}])
    'RandomFlip+RandomZoom'
    """
    return "+".join(str(each.get("class_name") or each.get("class")) for each in layers)


def settings(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return serialized layers as a short JSON list, which `serialize` takes.

    Examples
    --------
    >>> settings([{"class_name": "RandomFlip", "config": {"mode": "vertical", "seed": None}}])
    '[{"RandomFlip": {"mode": "vertical"}}]'
    """
    keep = [
        {
            each["class_name"]: {
                name: value
                for name, value in each["config"].items()
                if value is not None and name not in ("name", "trainable", "dtype")
            }
        }
        if each.get("registered_name") is None and _is_float32(each["config"].get("dtype"))
        else each
        for each in layers
    ]
    return json.dumps(keep)


def _is_float32(dtype: Any) -> bool:
    return dtype is None or (isinstance(dtype, Mapping) and dtype["config"]["name"] == "float32")


def fields(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return serialized layers in canonical form, for the prefix digest."""
    return json.loads(_fields(json.dumps(layers)))


@lru_cache(maxsize=8)
def _fields(text: str) -> str:
    from featurestore.backbone.identity import layer_fields

    try:
        return json.dumps([layer_fields(_built(each)) for each in json.loads(text)])
    except BackboneError as error:
        raise InputError(f"an augmentation layer {error}") from error


def check(layers: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> None:
    """Raise InputError for a layer that cannot augment images of this size.

    Each layer is called on noise: it has to keep the shape and the range of 0 to 255, to depend on
    nothing but its seed generators, and to give different results for different seeds.
    """
    import keras

    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, *size, 3)).astype(np.float32)
    for config in layers:
        name, layer = f"augmentation layer {title([config])!r}", _built(config)

        def call(layer: Any = layer, seed: int = 0) -> np.ndarray:
            count = len(_states(layer))
            seeds = np.random.default_rng(seed).integers(2**31, size=(count, 2))
            return np.rint(keras.ops.convert_to_numpy(_call(layer, image, seeds)))

        try:
            layer(image, training=True)  # builds it
            first = call()
            keras.random.uniform(())  # Moves Keras' own generator, which is of no layer.
            again = call()
        except Exception as error:  # Keras and TensorFlow raise dozens
            raise InputError(f"{name} does not take an image: {one_line(error)}") from error
        if first.shape != image.shape:
            found = "×".join(map(str, first.shape[1:3]))
            raise InputError(
                f"{name} makes {found} pixels of {size[0]}×{size[1]}; expected the same size: crop "
                "and resize by RandomZoom or RandomTranslation, or set the layer's size"
            )
        if not np.array_equal(first, again):
            raise InputError(
                f"{name} is not reproducible from its seed, so views could not be repeated; "
                "expected draws by a keras.random.SeedGenerator of the layer alone"
            )
        if not np.isfinite(first).all() or np.abs(first).max() <= 1:
            raise InputError(
                f"{name} gives values of {np.nanmin(first):.3g} to {np.nanmax(first):.3g}; expected"
                " 0 to 255 as the images have: set value_range=(0, 255)"
            )
        if all(np.array_equal(first, call(seed=seed)) for seed in range(1, TRIES)):
            does = "changes nothing" if np.array_equal(first, image) else "is not random"
            raise InputError(f"{name} {does}; leave it out: views are random changes of an image")


@lru_cache(maxsize=2)
def compiled(text: str, size: tuple[int, int]) -> Callable[[np.ndarray, int], np.ndarray]:
    """Compile layers, serialized and as JSON text, for images of one size.

    Returns
    -------
    callable
        From a resized image, uint8 (height, width, channel=3), and the number of a view to the
        view: the layers compute on 0 to 255 as float32; their result is rounded and clipped. Many
        threads may call it.
    """
    load_tensorflow()
    import tensorflow as tf

    layers, shape = [_built(each) for each in json.loads(text)], (1, *size, 3)

    def compute(image: Any, seeds: Any) -> Any:
        values, left = tf.cast(image, tf.float32), list(tf.unstack(seeds))
        for layer in layers:
            values = _call(layer, values, [left.pop() for _ in _states(layer)])
        return tf.cast(tf.clip_by_value(tf.round(tf.cast(values, tf.float32)), 0, 255), tf.uint8)

    with tf.device("CPU:0"):
        for layer in layers:
            layer(np.zeros(shape, np.float32), training=True)  # builds it
        count = sum(len(_states(layer)) for layer in layers)
        function = tf.function(compute, autograph=False).get_concrete_function(
            tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((count, 2), tf.int64)
        )

    def view(image: np.ndarray, number: int) -> np.ndarray:
        with tf.device("CPU:0"):
            seeds = tf.constant(_seeds(image, number, count))
            return function(tf.constant(image[None]), seeds).numpy()[0]

    return view


def _states(layer: Any) -> list[Any]:
    """Return the states of a layer's seed generators: Keras' ``variables`` beside its weights."""
    weights = {id(each) for each in layer.weights}
    return [each for each in layer.variables if id(each) not in weights]


def _call(layer: Any, values: Any, seeds: Iterable[Any]) -> Any:
    import keras

    with keras.StatelessScope(zip(_states(layer), seeds, strict=True)):
        return layer(values, training=True)


def _seeds(image: np.ndarray, number: int, count: int) -> np.ndarray:
    """Return the states of the seed generators, int64 (generator, 2): two numbers of 31 bits."""
    pixels = digest_array(image)
    drawn = [digest_fields({"image": pixels, "view": number, "draw": at}) for at in range(count)]
    words = np.frombuffer(b"".join(row_id(each)[:8] for each in drawn), "<u4")
    return (words.reshape(count, 2) >> 1).astype(np.int64)
