"""Whether a compiled pass computes what the plain layers do, one by one on the CPU.

A faulty device, driver or compiler gives numbers that look like any others: only another
computation of the same rows shows it. How far two right computations may be apart depends
on the network: most keep rounding small, and some amplify it. So where a difference is large, what
rounding does to this network is measured on the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.refs import LayerRef
from featurestore.errors import ActivationError, BackboneError, FeatureStoreWarning

if TYPE_CHECKING:
    from featurestore.backbone.network import Network

# Rows of a batch that the plain layers compute too.
ROWS = 4

# Of the layer's largest activation. In float32, TensorFlow's compiled pass keeps within 6e-5 on
# trained networks, and rounds to float16, as features are stored, by 5e-4. Arithmetic of 10 bits
# (TF32) is off by 3.4e-4 and more, of 7 bits (bfloat16) by 2e-3 and more.
TOLERANCE = 3e-4
# A network that computes in float16 or bfloat16 itself may multiply their rounding a hundredfold
# on its way, so that only gross errors can be detected.
LOW_PRECISION_TOLERANCE = 0.25

# A right pass may be so many times as far from the plain layers as these move when the last bit of
# each layer's result does. Measured on 30 layers of 14 network families: at most twice.
ROUNDINGS = 16.0
DRAWS = 2


def tolerance(precision: str) -> float:
    """Return how far apart two computations may be, given the types that were computed with.

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

    Parameters
    ----------
    found, wanted : numpy.ndarray of float32, (row, …)
        Two computations of the same activations.
    among : numpy.ndarray, optional
        Activations to take the largest magnitude of, in the place of ``wanted``.

    Returns
    -------
    float
        0 where they are equal, NaN counting as equal to NaN; infinity where one is not finite and
        the other something else, or where only ``wanted`` is all zeros.

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
    # In float64: the difference of two large float32 numbers may be none.
    apart = np.abs(found[unlike].astype("float64") - wanted[unlike].astype("float64"))
    among = wanted if among is None else among
    largest = np.abs(among[np.isfinite(among)]).max(initial=0.0)
    if largest == 0 or not np.isfinite(apart).all():
        return float("inf")
    return float(apart.max() / largest)


def amplification(
    backbone: Network,
    refs: Sequence[LayerRef | str],
    images: np.ndarray,
    wanted: Sequence[np.ndarray] | None = None,
) -> list[float]:
    """Return how far the last bit of each layer's result moves the activations at some refs.

    ``wanted`` is what the plain layers give; the rest is as for :meth:`Network.amplification`.
    """
    wanted = backbone.reference(refs)(images) if wanted is None else wanted
    draws = [backbone.rounded(refs, seed)(images) for seed in range(DRAWS)]
    moved = [max(distance(draw[i], w) for draw in draws) for i, w in enumerate(wanted)]
    # What overflows where another bit does not explains nothing.
    return [each if np.isfinite(each) else 0.0 for each in moved]


def check(
    backbone: Network,
    refs: Sequence[LayerRef],
    images: np.ndarray,
    found: Sequence[np.ndarray],
) -> None:
    """Check what a compiled pass gave before it is stored.

    Parameters
    ----------
    backbone : Network
    refs : sequence of LayerRef
        What the pass was compiled for.
    images : numpy.ndarray of uint8, (batch, height, width, channel=3)
        What it was given.
    found : sequence of numpy.ndarray of float32, (batch, …)
        What it gave.

    Raises
    ------
    ActivationError
        If it is too far from the plain layers; it names the layer that is furthest beyond its
        tolerance.
    BackboneError
        If the plain layers give another result each time, or one that depends on which images
        are in a batch.

    Warns
    -----
    FeatureStoreWarning
        If a difference is accepted because the network amplifies rounding so much.
    """
    rows = sampled(len(images))
    few, reference = images[rows], backbone.reference(refs)
    wanted = reference(few)
    apart = [distance(f[rows], w) for f, w in zip(found, wanted, strict=True)]
    beside, together = few, wanted
    if (few == few[:1]).all():  # a row has to stand beside another one
        beside = np.concatenate([few[:1], 255 - few[:1]])
        together = reference(beside)
    mixed = [0.0] * len(refs)
    for end in (slice(0, 1), slice(len(beside) - 1, None)):
        alone = reference(beside[end])
        for i, all_ in enumerate(together):
            mixed[i] = max(mixed[i], distance(alone[i], all_[end], all_))
    usual = [tolerance(backbone.precision(ref.layer)) for ref in refs]
    if all(a <= u for a, u in zip(apart, usual, strict=True)) and max(mixed) <= TOLERANCE:
        return
    again = [distance(*pair) for pair in zip(reference(beside), together, strict=True)]
    moved = amplification(backbone, refs, beside, together)
    for i, ref in enumerate(refs):
        _require_own(ref, again[i], mixed[i], max(TOLERANCE, ROUNDINGS * moved[i]))
    _require(refs, apart, [max(u, ROUNDINGS * m) for u, m in zip(usual, moved, strict=True)])
    for i, ref in enumerate(refs):
        if apart[i] > usual[i] or mixed[i] > TOLERANCE:
            _accept(backbone, ref, beside, moved[i])


def _require_own(ref: LayerRef, again: float, mixed: float, allowed: float) -> None:
    """Raise BackboneError if the activations of an image depend on more than the image."""
    if again > TOLERANCE:
        raise BackboneError(
            f"layer {str(ref)!r} gives another result each time: the same images differ by"
            f" {again:.2g} of its largest activation; cut before the layer that draws random"
            " numbers or remembers"
        )
    if mixed > allowed:
        raise BackboneError(
            f"layer {str(ref)!r} mixes the images of a batch: one alone and the same beside others"
            f" differ by {mixed:.2g} of its largest activation; cut before the layer that does"
        )


def _require(refs: Sequence[LayerRef], apart: Sequence[float], allowed: Sequence[float]) -> None:
    worst, number = max((a / b, i) for i, (a, b) in enumerate(zip(apart, allowed, strict=True)))
    if worst > 1:
        raise ActivationError(
            f"layer {str(refs[number])!r} differs by {apart[number]:.2g} of its largest activation"
            f" from what its plain layers give on the CPU, expected at most {allowed[number]:.2g}:"
            f" the device or library that computes here is wrong; {forward.another_way()}"
        )


def _accept(backbone: Network, ref: LayerRef, images: np.ndarray, moved: float) -> None:
    """Warn of a layer that amplifies rounding, after a check of the last layer that does not."""
    before = backbone.layers_before(ref.layer)
    steady, unsteady = -1, len(before)
    while unsteady - steady > 1:  # rounding grows with depth
        middle = (steady + unsteady) // 2
        (each,) = amplification(backbone, [LayerRef(before[middle])], images)
        if ROUNDINGS * each <= TOLERANCE:
            steady = middle
        else:
            unsteady = middle
    way = "trained weights seldom do"
    if steady >= 0:
        last = [LayerRef(before[steady])]
        found, wanted = backbone.forward(last)(images), backbone.reference(last)(images)
        _require(last, [distance(found[0], wanted[0])], [TOLERANCE])
        way = f"{str(last[0])!r} does not"
    warnings.warn(
        f"layer {str(ref)!r} amplifies rounding: the last bit of each layer's result moves it by"
        f" {moved:.2g} of its largest activation, so that its features differ as much with the"
        f" batch size and the machine; {way}",
        FeatureStoreWarning,
        stacklevel=2,
    )
