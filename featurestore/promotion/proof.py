"""Prove that a fused model on image files equals the cached head on stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.backbone import LayerRef, numerics
from featurestore.backbone.forward import exact, plain
from featurestore.digests import short
from featurestore.errors import NotFoundError, ParityError
from featurestore.extraction.batches import images_of
from featurestore.extraction.derivation import sources_of
from featurestore.extraction.run import extract_command
from featurestore.listening import OnEvent
from featurestore.promotion.events import PromotionStageStarted, Proved
from featurestore.promotion.fuse import Fused, with_internals
from featurestore.promotion.parity import (
    FeatureCheck,
    Parity,
    compare,
    head_tolerance,
    require,
    require_same_images,
    row_tolerance,
)
from featurestore.promotion.saved import load_model, save_model, weights_digest
from featurestore.scratch import scratch
from featurestore.store import RowIndex, StoredRows
from featurestore.store.rows import FEWEST_ROWS
from featurestore.table import plural

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.heads import Head

PROOF_ROWS = 128
# The rows come from this many blocks: swapped blocks show, and little is read.
PROOF_BLOCKS = 16
# Rows of wide layers are limited to this many bytes.
PROOF_BYTES = 2**28
# Rows for measuring how strongly the network amplifies rounding.
ROUNDED_ROWS = 8
# Rows in the batch that the model is also called on.
CALLED_ROWS = 32
# Below this, all sigmoids underflow, and scikit-learn gives all classes the same probability.
UNDERFLOW = -80.0


def prove(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    metadata: dict[str, Any],
    on_event: OnEvent,
) -> Parity:
    """Prove that a fused model, and its saved file, predict what the cached head predicts.

    Features of lower precision are proven to be those of the same images. The model computes in
    float32, and is compared with the head on float32 features.

    Images are predicted one by one, in their own sizes, as a user would. The model is also called
    on a batch, as export and nesting do. Then the file is saved, with its metadata, loaded by
    Keras, and compared in both ways. No weight may change. Rows of the head's samples that are not
    stored are left out; others may be in any array of the same prefix and reduction.

    Returns
    -------
    Parity
        Of the fused model.

    Raises
    ------
    ParityError
        If they disagree, if a weight changes, or if rounding decides too much for a proof.
    NotFoundError, IncompleteFeaturesError
        If the features were removed, or too few blocks of them exist, and no other array has enough
        of the rows.
    """
    cached = _stored(head, backbone, data)
    rows = proof_rows(cached.block_of, 4 * int(np.prod(cached.shape[1:])))
    on_event(PromotionStageStarted(f"prove on {plural(len(rows), 'image')}"))
    few = np.unique(np.linspace(0, len(rows) - 1, CALLED_ROWS).astype(int))
    images = images_of(data, backbone, rows[few].tolist())
    stored, dtype = cached.read(rows, dtype="float32"), cached.dtype
    ref = LayerRef.parse(head.key.ref)
    lower = backbone.computing.precision
    if lower != "float32":
        # Perhaps not where its engine was: any computes float32.
        backbone = backbone.in_float32()
        dtype = np.dtype("float32")
        exactly = _computed(backbone, ref, data, rows)
        require_same_images(stored, exactly, lower)
        stored = exactly
    passes = (backbone.reference([ref]), numerics.rounded(backbone.computation([ref])))
    alone, rounded = (each(images[:ROUNDED_ROWS])[0] for each in passes)
    derived = _derived(backbone, ref, cached, images[:ROUNDED_ROWS])
    precision = backbone.precision(ref.layer)
    averaged = backbone.cuts.averaged(ref)
    terms: np.ndarray | float = 0.0
    if averaged is not None:
        (whole,) = backbone.reference([averaged])(images[:ROUNDED_ROWS])
        means = np.abs(whole).mean(axis=tuple(range(1, whole.ndim - 1)))
        terms = means.max(axis=0).reshape(stored.shape[1:])
    check = FeatureCheck(stored, dtype, precision, alone, rounded, derived, terms)
    check.require_distinct()
    held_out = data.splits[rows] != "train"

    def both_ways(model: keras.Model, index: np.ndarray, what: str) -> Parity:
        traced = with_internals(model, fused)
        with exact():
            found = [traced.predict_on_batch(data.image(int(row))[None]) for row in rows[index]]
            called = [np.asarray(each) for each in traced(images)]
        outputs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        parity = _judge(head, fused, check, index, held_out, outputs, what)
        _judge(head, fused, check, few, held_out, called, f"{what}, called,")
        on_event(Proved(what, parity))
        return parity

    weights = weights_digest(fused.model)
    parity = both_ways(fused.model, np.arange(len(rows)), "the fused model")
    with scratch() as folder:
        path = folder / "model.keras"
        save_model(fused.model, path, metadata)
        loaded = load_model(path).model
    both_ways(loaded, few, "the saved file")
    if not weights_digest(fused.model) == weights_digest(loaded) == weights:
        raise ParityError(
            "weights of the promoted model changed when it was called or saved, though nothing was "
            "trained: a layer is in training mode at inference; cut the backbone before that layer"
        )
    return parity


def _stored(head: Head, backbone: Backbone, data: Dataset) -> StoredRows:
    """Find enough of a head's samples, in any arrays, to prove a model on them.

    The features that the head was fitted on may have been removed, or be incomplete.
    """
    # A view is not an image that a model could be called on.
    is_view = data.image_rows != np.arange(len(data))
    index = RowIndex(head.store.features)
    rows = index.find(head.key, data.sample_ids).without(is_view)
    needed = min(FEWEST_ROWS, int(np.count_nonzero(~is_view)))
    if rows.count >= needed:
        return rows
    try:
        own = head.store.features.get(head.key)
    except NotFoundError as error:
        raise NotFoundError(
            f"the features of {head.id} are no longer in {head.store.location}, and others there "
            f"have {rows.count:,} of its {len(data):,} samples, where the proof needs {needed}",
            remedy=f"extract them again with `{extract_command(data, backbone, head.key.ref)}`",
        ) from error
    index.row_ids(own)  # Raises if they are damaged.
    own.require()
    return _stored(head, backbone, data)  # Another process has just completed them.


def _computed(backbone: Backbone, ref: LayerRef, data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Compute the features of some rows, (row, …)."""
    forward, found = backbone.forward([ref]), []
    for few in np.array_split(rows, -(-len(rows) // CALLED_ROWS)):
        found += forward(images_of(data, backbone, few.tolist()))
    return np.concatenate(found)


def _derived(
    backbone: Backbone, ref: LayerRef, rows: StoredRows, images: np.ndarray
) -> list[np.ndarray]:
    """Derive features of some images from the layers that stored rows were derived from."""
    named, derived = set().union(*map(sources_of, rows.groups)), []
    for source in backbone.cuts.derivable_from(ref) if named else ():
        if short(backbone.prefix_digest(source)) in named:
            (whole,) = backbone.reference([source])(images)
            tail = plain(backbone.computation([ref], source=source))
            derived += tail(whole.astype(rows.dtype))
    return derived


def proof_rows(block_of: np.ndarray, row_bytes: int) -> np.ndarray:
    """Return some of the rows that are stored, from blocks spread over all.

    Content order is a fair shuffle, so that these are a random sample.

    Parameters
    ----------
    block_of : numpy.ndarray of int64, (row,)
        The block that has each row, as `StoredRows.block_of`; -1 for a row that is not stored.
    row_bytes : int
        Of a row as float32.

    Examples
    --------
    >>> proof_rows(np.arange(250) // 100, 32)[[0, 42, 43, -1]]
    array([  0,  42, 100, 242])
    """
    stored = np.argsort(block_of, kind="stable")[np.count_nonzero(block_of < 0) :]
    wanted = int(np.clip(PROOF_BYTES // row_bytes, PROOF_BLOCKS, PROOF_ROWS))
    blocks, first = np.unique(block_of[stored], return_index=True)
    chosen = np.unique(np.linspace(0, len(blocks) - 1, PROOF_BLOCKS).astype(int))
    each = -(-wanted // len(chosen))
    parts = np.split(stored, first[1:])
    return np.concatenate([parts[block][:each] for block in chosen])


def _judge(
    head: Head,
    fused: Fused,
    check: FeatureCheck,
    index: np.ndarray,
    held_out: np.ndarray,
    outputs: list[np.ndarray],
    what: str,
) -> Parity:
    """Compare a model's features, scores and output with the cached head on some stored rows.

    ``index`` holds their positions in the check, ``held_out`` (row,) says which of the check's rows
    the head was not trained on, and ``what`` names the model in messages.
    """
    features, scores, output = outputs
    check.require(features, index, what)
    expected = head.decision_function(features)
    bound = row_tolerance if fused.isotonic else head_tolerance
    arithmetic = np.broadcast_to(bound(head.decision_function, features), len(features))
    _require_equal(expected, scores, arithmetic, f"the head of {what}")
    # A threshold shifts the output, so that the head's probabilities are not in it.
    likely = None if fused.threshold else head.predict_proba(features)
    if likely is not None:
        clear = expected.max(axis=1) > UNDERFLOW
        # No probability moves by more than twice what the scores do.
        probability = f"the probability by {what}"
        allowed = 2 * arithmetic[clear] + 1e-6
        _require_equal(likely[clear], output[clear], allowed, probability)
    measured = head.decision_function(check.stored[index])
    moved = np.abs(expected - measured).max(axis=1)
    tolerance = arithmetic + (moved if fused.isotonic else moved.max())
    parity = compare(measured, scores, tolerance)
    require(parity, measured, check.dtype, what)
    apart = held_out[index]
    if apart.any():
        # A head that overfits is sure of its training rows, whatever rounding does to others.
        unseen = compare(measured[apart], scores[apart], tolerance[apart])
        require(unseen, measured[apart], check.dtype, f"{what} on held-out rows")
    return parity


def _require_equal(expected: np.ndarray, found: np.ndarray, allowed: np.ndarray, what: str) -> None:
    difference = np.abs(expected - found).max(axis=1, initial=0)
    if not (difference <= allowed).all():
        worst = int(np.argmax(difference - allowed))
        raise ParityError(
            f"{what} differs from the cached head on equal features by up to "
            f"{difference[worst]:.3g}, where float32 arithmetic explains {allowed[worst]:.3g}; "
            "nothing was trained or saved. "
            "Train the head again with `featurestore train`, or report its estimator and parameters"
        )
