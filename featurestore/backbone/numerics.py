"""Whether a compiled model computes what the plain layers do, one by one on the CPU.

A faulty device, driver or compiler gives numbers that look like any others: only a second
computation of the same rows shows it. How far two correct computations may differ depends on the
network: most keep rounding small, and some amplify it. So if a difference is large, what rounding
does to this network is measured on the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.computing import UNITS, Computation
from featurestore.errors import ActivationError, BackboneError, FeatureStoreWarning

# Rows of a batch that the plain layers compute too.
ROWS = 4

# Of the layer's largest activation. In float32, TensorFlow's compiled model keeps within 6e-5 on
# trained networks, and rounding to float16, as features are stored, moves by 5e-4. Arithmetic of 10
# bits (TF32) is off by 3.4e-4 and more, of 7 bits (bfloat16) by 2e-3 and more.
TOLERANCE = 3e-4
# A network that computes in float16 or bfloat16 may multiply their rounding a hundredfold, so that
# only gross errors can be detected.
LOW_PRECISION_TOLERANCE = 0.25

# A correct model may be this many times as far from the plain layers as they move when the last bit
# of each layer's result does. Measured on 30 layers of 14 network families: at most twice.
ROUNDINGS = 16.0
DRAWS = 2

# Features that are derived from stored ones, and stored, may be this many times as far from the
# plain network as storing alone moves it. Rows that are not checked may be a little further.
DERIVED = 1.5


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
    return sorted({round(row) for row in np.linspace(0, rows - 1, min(rows, ROWS)).tolist()})


def distance(values: np.ndarray, wanted: np.ndarray, among: np.ndarray | None = None) -> float:
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
    unlike = (values != wanted) & ~(np.isnan(values) & np.isnan(wanted))
    if not unlike.any():
        return 0.0
    # In float64, because the difference of two large float32 numbers may overflow.
    apart = np.abs(values[unlike].astype("float64") - wanted[unlike].astype("float64"))
    among = wanted if among is None else among
    largest = np.abs(among[np.isfinite(among)]).max(initial=0.0)
    if largest == 0 or not np.isfinite(apart).all():
        return float("inf")
    return float(apart.max() / largest)


def amplification(
    part: Computation, images: np.ndarray, wanted: Sequence[np.ndarray]
) -> list[float]:
    """Return how far rounding moves activations, relative to the largest: ``Computation.rounded``.

    ``wanted`` is what the plain layers give for the images.
    """
    draws = [part.rounded(seed)(images) for seed in range(DRAWS)]
    moved = [max(distance(draw[i], w) for draw in draws) for i, w in enumerate(wanted)]
    # A value that overflows only when its last bit moves explains nothing.
    return [change if np.isfinite(change) else 0.0 for change in moved]


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
    part: Computation, derived: np.ndarray, wanted: np.ndarray, images: np.ndarray, dtype: str
) -> Derived:
    """Compare what a tail gives for stored activations with the network on their images.

    Storing as float16 moves a value by up to 2**-11 of it; derived and stored, it may move by
    `DERIVED` times as much, relative to the largest activation. Derived and stored as float32, it
    may move as far as in a compiled model. It may move further if the network amplifies rounding so
    much that a computed value could be as far away.

    Parameters
    ----------
    part : Computation
        From the images to the ref that is derived.
    derived, wanted : numpy.ndarray of float32, (row, …)
        What the tail gives, and the network.
    images : numpy.ndarray of uint8, (row, height, width, channel=3)
    dtype : {"float16", "float32"}
        The type that the derived features will have.
    """
    with np.errstate(over="ignore"):
        stored = derived.astype(dtype).astype("float32")
    apart = distance(stored, wanted)
    allowed = TOLERANCE if dtype == "float32" else DERIVED * UNITS[dtype] / 2
    if apart > allowed:
        (moved,) = amplification(part, images, [wanted])
        allowed = max(allowed, ROUNDINGS * moved)
    return Derived(apart, allowed)


def check_first_batch(part: Computation, model: forward.CompiledModel) -> forward.CompiledModel:
    """Return a compiled model that checks what it gives for its first batch: see :func:`check`."""
    unchecked = model.run

    def run(images: np.ndarray) -> list[np.ndarray]:
        activations = unchecked(images)
        check(part, images, activations, model.engine)
        model.run = unchecked
        return activations

    model.run = run
    return model


def check(
    part: Computation,
    images: np.ndarray,
    activations: Sequence[np.ndarray],
    engine: str = "tensorflow",
) -> None:
    """Check what a compiled model gave for a batch, on a few rows, before it is stored.

    ``images`` are uint8 (batch, height, width, channel=3); ``activations`` are float32 (batch, …)
    for each ref, as ``engine`` computed them.

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
    rows, reference = sampled(len(images)), part.plain()
    # The last row stands beside different images here, and beside itself below.
    checked = np.concatenate([images[rows], 255 - images[:1]])
    wanted, beside = reference(checked), reference(checked[[-1, -1]])
    apart = [distance(a[rows], w[:-1]) for a, w in zip(activations, wanted, strict=True)]
    mixed = [distance(b[:1], w[-1:], w) for b, w in zip(beside, wanted, strict=True)]
    usual = [tolerance(precision) for precision in part.precisions]
    if all(a <= u for a, u in zip(apart, usual, strict=True)) and max(mixed) <= TOLERANCE:
        return
    again = [distance(*pair) for pair in zip(reference(checked), wanted, strict=True)]
    moved = amplification(part, checked, wanted)
    for i, (_, ref) in enumerate(part.ends):
        layer, allowed = f"layer {str(ref)!r}", max(usual[i], ROUNDINGS * moved[i])
        if again[i] > TOLERANCE:
            raise BackboneError(
                f"{layer} is not deterministic: the same images differ by {again[i]:.2g} of its"
                " largest activation",
                remedy="cut before the layer that draws random numbers or keeps state",
            )
        if mixed[i] > max(TOLERANCE, ROUNDINGS * moved[i]):
            raise BackboneError(
                f"{layer} mixes the images of a batch: the same image beside others differs by"
                f" {mixed[i]:.2g} of its largest activation",
                remedy="cut before the layer that mixes them",
            )
        if apart[i] > allowed:
            raise ActivationError(
                f"{layer} differs by {apart[i]:.2g} of its largest activation from what its plain"
                " layers give on the CPU: this device or library computes wrong numbers",
                f"at most {allowed:.2g}",
                part.another_way(engine),
            )
        # Which bits are lost in low precision is the user's choice.
        if part.precision == "float32" and max(apart[i] - usual[i], mixed[i] - TOLERANCE) > 0:
            warnings.warn(
                f"{layer} amplifies rounding: the last bit of each layer's result moves it by"
                f" {moved[i]:.2g} of its largest activation, so that its features differ as much"
                " with the batch size and the machine; trained weights seldom do",
                FeatureStoreWarning,
                stacklevel=2,
            )
