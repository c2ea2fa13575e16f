"""Whether a compiled pass computes what the plain layers do, one by one on the CPU.

A faulty device, driver or compiler gives numbers that look like any others: only a second
computation of the same rows shows it. How far two correct computations may differ depends on the
network: most keep rounding small, and some amplify it. So if a difference is large, what rounding
does to this network is measured on the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.network import Network
from featurestore.backbone.refs import LayerRef
from featurestore.errors import ActivationError, BackboneError, FeatureStoreWarning

# Rows of a batch that the plain layers compute too.
ROWS = 4

# Of the layer's largest activation. In float32, TensorFlow's compiled pass keeps within 6e-5 on
# trained networks, and rounding to float16, as features are stored, moves by 5e-4. Arithmetic of 10
# bits (TF32) is off by 3.4e-4 and more, of 7 bits (bfloat16) by 2e-3 and more.
TOLERANCE = 3e-4
# A network that computes in float16 or bfloat16 may multiply their rounding a hundredfold, so that
# only gross errors can be detected.
LOW_PRECISION_TOLERANCE = 0.25

# A correct pass may be this many times as far from the plain layers as they move when the last bit
# of each layer's result does. Measured on 30 layers of 14 network families: at most twice.
ROUNDINGS = 16.0
DRAWS = 2

# Features that are derived from stored ones, and stored, may be so many times as far from the plain
# network as storing alone moves it. Rows that nobody looks at may be a little further.
DERIVED = 1.5

# The distance from 1 to the next number of each type.
_UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def tolerance(precision: str) -> float:
    """Return how far apart two computations may be, given the types they compute with.

    Examples
    --------
    >>> tolerance("float32"), tolerance("bfloat16+float32")
    (0.0003, 0.25)
    """
    exact = set(precision.split("+")) <= {"float32", "float64"}
    return TOLERANCE if exact else LOW_PRECISION_TOLERANCE


def sampled(rows: int) -> list[int]:
    """Return the rows of a batch to compute twice: the first, the last and some between.

    Examples
    --------
    >>> sampled(32), sampled(3)
    ([0, 10, 21, 31], [0, 1, 2])
    """
    return sorted({round(each) for each in np.linspace(0, rows - 1, min(rows, ROWS)).tolist()})


def distance(found: np.ndarray, wanted: np.ndarray, among: np.ndarray | None = None) -> float:
    """Return the largest difference, relative to the largest magnitude of what is wanted.

    ``among`` takes the place of ``wanted`` in the latter. 0 if they are equal (NaN equals NaN);
    infinity if one is not finite and the other differs, or if only ``wanted`` is all zeros.

    Examples
    --------
    >>> distance(np.float32([1, 3]), np.float32([1, 4]))
    0.25
    >>> distance(np.float32([1, np.nan]), np.float32([1, 4]))
    inf
    """
    unlike = (found != wanted) & ~(np.isnan(found) & np.isnan(wanted))
    if not unlike.any():
        return 0.0
    # In float64, because the difference of two large float32 numbers may overflow.
    apart = np.abs(found[unlike].astype("float64") - wanted[unlike].astype("float64"))
    among = wanted if among is None else among
    largest = np.abs(among[np.isfinite(among)]).max(initial=0.0)
    if largest == 0 or not np.isfinite(apart).all():
        return float("inf")
    return float(apart.max() / largest)


def rounded(
    backbone: Network, refs: Sequence[LayerRef | str], seed: int = 0, precision: str = "float32"
) -> forward.Forward:
    """Return :meth:`Network.reference` with the last bit of each layer's result moved up or down.

    What this changes is what rounding may change: the same layers, computed in another order of
    sums, on another machine or in another batch, differ by about as much.

    Parameters
    ----------
    backbone : Network
    refs : sequence of LayerRef or str
        Where to cut.
    seed : int
        From 0 on; each gives another movement. Equal values move alike, as they round alike, and
        a row moves alike whatever else is in its batch.
    precision : str
        The last bit of this type moves, where the layer's own is longer.
    """
    import keras

    def move(tensor: Any) -> Any:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype not in _UNITS:  # integers are exact
            return tensor
        unit = max(_UNITS[dtype], _UNITS[precision])
        factors = 1 + unit * _signs(keras.ops.convert_to_numpy(tensor), seed)
        moved = keras.ops.multiply(tensor, keras.ops.convert_to_tensor(factors, dtype))
        # A mask is an attribute of the tensor, and must go on with it.
        moved._keras_mask = getattr(tensor, "_keras_mask", None)
        return moved

    return forward.plain(backbone.computation(refs, move))


def amplification(
    backbone: Network,
    refs: Sequence[LayerRef | str],
    images: np.ndarray,
    wanted: Sequence[np.ndarray] | None = None,
    precision: str = "float32",
) -> list[float]:
    """Return how far :func:`rounded` is from the plain layers, relative to the largest activation.

    ``wanted`` is what the plain layers give, if it is known already.
    """
    wanted = backbone.reference(refs)(images) if wanted is None else wanted
    draws = [rounded(backbone, refs, seed, precision)(images) for seed in range(DRAWS)]
    moved = [max(distance(draw[i], w) for draw in draws) for i, w in enumerate(wanted)]
    # A value that overflows only when its last bit moves explains nothing.
    return [each if np.isfinite(each) else 0.0 for each in moved]


@dataclass(frozen=True)
class Derived:
    """How far derived features are from those of the plain network, and may be.

    Both are relative to the layer's largest activation, and count what storing rounds.
    """

    apart: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the derived features may be stored as if they were computed from the images."""
        return self.apart <= self.allowed


def check_derived(
    backbone: Network,
    tail: forward.Forward,
    ref: LayerRef | str,
    stored: np.ndarray,
    images: np.ndarray,
    dtype: str,
) -> Derived:
    """Compare what a tail gives for stored activations with the plain network on their images.

    Storing as float16 moves a value by up to 2**-11 of it; derived and stored, it may move by
    `DERIVED` times as much, relative to the largest activation. Derived and stored as float32, it
    may move as far as in a compiled pass. It may move further if the network amplifies rounding so
    much that a computed value could be as far away.

    Parameters
    ----------
    tail : callable
        :meth:`Network.tail` from the layer that is stored to ``ref``.
    ref : LayerRef or str
        What is derived.
    stored : numpy.ndarray
        Whole activations of that layer as they are stored, (row, …), of a few rows.
    images : numpy.ndarray of uint8, (row, height, width, channel=3)
        The resized images of the same rows.
    dtype : {"float16", "float32"}
        The type that the derived features will have.
    """
    exactly = backbone.computing.precision == "float32"
    (wanted,) = (backbone.reference if exactly else backbone.forward)([ref])(images)
    with np.errstate(over="ignore"):
        found = tail(stored)[0].astype(dtype)
    apart = distance(found.astype("float32"), wanted)
    allowed = TOLERANCE if dtype == "float32" else DERIVED * _UNITS[dtype] / 2
    if apart > allowed:
        (moved,) = amplification(backbone, [ref], images, [wanted])
        allowed = max(allowed, ROUNDINGS * moved)
    return Derived(apart, allowed)


def checked(network: Network, refs: Sequence[LayerRef | str]) -> forward.Pass:
    """Compile the forward pass of a network so that it checks its first batch: see :func:`check`.

    If the fastest engine fails there, and none was asked for, the next one takes its place.

    Warns
    -----
    FeatureStoreWarning
        If it does.
    """
    compiled = Network.forward(network, refs)
    unchecked = compiled.run

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = unchecked(images)
        try:
            check(network, refs, images, found, compiled.engine)
        except ActivationError as error:
            if network.computing.engine != "auto" or compiled.engine == "tensorflow":
                raise
            if network.weights_changed():
                raise  # Another engine would compute with other weights than those of the key.
            other = network.forward_with("tensorflow", refs)
            found = other(images)
            check(network, refs, images, found, other.engine)
            warnings.warn(
                f"TensorFlow computes {network.name} instead of {compiled.engine}: {error}",
                FeatureStoreWarning,
                stacklevel=2,
            )
            compiled.engine, compiled.run = other.engine, other.run
        else:
            compiled.run = unchecked
        return found

    compiled.run = run
    return compiled


def check(
    backbone: Network,
    refs: Sequence[LayerRef | str],
    images: np.ndarray,
    found: Sequence[np.ndarray],
    engine: str = "tensorflow",
) -> None:
    """Check what a compiled pass gave for a batch, on a few rows, before it is stored.

    ``images`` are uint8 (batch, height, width, channel=3); ``found`` is float32 (batch, …) for each
    ref, as ``engine`` computed it.

    Raises
    ------
    ActivationError
        If a layer is further from the plain layers than the tolerance of its precision, and than
        rounding explains in this network.
    BackboneError
        If the plain layers give another result each time, or one that depends on which images are
        in a batch.

    Warns
    -----
    FeatureStoreWarning
        If a larger difference is accepted because the network amplifies rounding.
    """
    cuts = [LayerRef.parse(ref) for ref in refs]
    rows, reference = sampled(len(images)), backbone.reference(refs)
    few = images[rows]
    if (few == few[:1]).all():  # whether rows are mixed shows only among different ones
        few = np.concatenate([few, 255 - few[:1]])
    wanted = reference(few)
    apart = [distance(f[rows], w[: len(rows)]) for f, w in zip(found, wanted, strict=True)]
    # The last row comes first, beside another one.
    beside = reference(np.concatenate([few[-1:], 255 - few[:1]]))
    mixed = [distance(b[:1], w[-1:], w) for b, w in zip(beside, wanted, strict=True)]
    usual = [tolerance(backbone.precision(ref.layer)) for ref in cuts]
    if all(a <= u for a, u in zip(apart, usual, strict=True)) and max(mixed) <= TOLERANCE:
        return
    again = [distance(*pair) for pair in zip(reference(few), wanted, strict=True)]
    moved = amplification(backbone, refs, few, wanted)
    for i, ref in enumerate(cuts):
        _require_own(ref, again[i], mixed[i], max(TOLERANCE, ROUNDINGS * moved[i]))
    precision = backbone.computing.precision
    if precision != "float32":
        moved = amplification(backbone, refs, few, wanted, precision)
    allowed = [max(u, ROUNDINGS * m) for u, m in zip(usual, moved, strict=True)]
    _require(cuts, apart, allowed, engine)
    if precision != "float32":
        return  # which bits were lost on the way is the user's choice
    for i, ref in enumerate(cuts):
        if apart[i] > usual[i] or mixed[i] > TOLERANCE:
            _accept(backbone, ref, few, moved[i], engine)


def _require_own(ref: LayerRef, again: float, mixed: float, allowed: float) -> None:
    """Raise BackboneError if the activations of an image depend on more than the image."""
    if again > TOLERANCE:
        raise BackboneError(
            f"layer {str(ref)!r} is not deterministic: the same images differ by"
            f" {again:.2g} of its largest activation; cut before the layer that draws random"
            " numbers or keeps state"
        )
    if mixed > allowed:
        raise BackboneError(
            f"layer {str(ref)!r} mixes the images of a batch: the same image beside others differs"
            f" by {mixed:.2g} of its largest activation; cut before the layer that mixes them"
        )


def _require(
    refs: Sequence[LayerRef], apart: Sequence[float], allowed: Sequence[float], engine: str
) -> None:
    worst, number = max((a / b, i) for i, (a, b) in enumerate(zip(apart, allowed, strict=True)))
    if worst > 1:
        raise ActivationError(
            f"layer {str(refs[number])!r} differs by {apart[number]:.2g} of its largest activation"
            f" from what its plain layers give on the CPU, expected at most {allowed[number]:.2g}:"
            f" this device or library computes wrong numbers; {forward.another_way(engine)}"
        )


def _accept(
    backbone: Network, ref: LayerRef, images: np.ndarray, moved: float, engine: str
) -> None:
    """Warn of a layer that amplifies rounding, after a check of the last layer that does not."""
    before = backbone.layers_before(ref.layer)
    steady, unsteady = -1, len(before)
    while unsteady - steady > 1:  # rounding grows with depth
        middle = (steady + unsteady) // 2
        (each,) = amplification(backbone, [before[middle]], images)
        if ROUNDINGS * each <= TOLERANCE:
            steady = middle
        else:
            unsteady = middle
    way = "trained weights seldom do"
    if steady >= 0:
        last = [LayerRef(before[steady])]
        found = backbone.forward_with(engine, last)(images)
        wanted = backbone.reference(last)(images)
        _require(last, [distance(found[0], wanted[0])], [TOLERANCE], engine)
        way = f"{str(last[0])!r} does not"
    warnings.warn(
        f"layer {str(ref)!r} amplifies rounding: the last bit of each layer's result moves it by"
        f" {moved:.2g} of its largest activation, so that its features differ as much with the"
        f" batch size and the machine; {way}",
        FeatureStoreWarning,
        stacklevel=2,
    )


def _signs(values: np.ndarray, seed: int) -> np.ndarray:
    """Return 1 or -1 for each value, by a multiplicative hash of its bits."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(15))) + np.uint64(seed * 0x632BE59BD9B4E019 % 2**64)
    high = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)
    return 2.0 * high.astype(np.float64) - 1.0
