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
    head_tolerance,
    require_decisive,
    require_own_images,
    require_same,
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

    The model predicts images one by one, in their own sizes, as a user would. It is also called on
    a batch, as export and nesting do. Then the file is saved, with its metadata, loaded by Keras,
    and compared in both ways. No weight may change.

    Rows of the head's samples that are not stored are left out; others may be in any array of the
    same prefix and reduction. The model computes in float32: if the stored features are of lower
    precision, they are proven to be those of the same images, and the model is compared with the
    head on features that the backbone computes in float32.

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
    ref = LayerRef.parse(head.key.ref)
    cached = _stored(head, backbone, data)
    rows = proof_rows(cached.block_of, 4 * int(np.prod(cached.shape[1:])))
    on_event(PromotionStageStarted(f"prove on {plural(len(rows), 'image')}"))
    stored = cached.read(rows, dtype="float32")
    outputs = _one_by_one(with_internals(fused.model, fused), data, rows)
    expected, dtype, precision = stored, cached.dtype, backbone.computing.precision
    if precision != "float32":
        # Any engine computes float32; that of the stored features may not exist on this machine.
        backbone, dtype = backbone.in_float32(), np.dtype("float32")
        expected = _computed(backbone, ref, data, rows)
    some = np.unique(np.linspace(0, len(rows) - 1, CALLED_ROWS).astype(int))
    images = images_of(data, backbone, rows[some].tolist())
    check = _feature_check(backbone, ref, cached, expected, dtype, images[:ROUNDED_ROWS])
    held_out = data.splits[rows] != "train"

    def judge(outputs: list[np.ndarray], index: np.ndarray, what: str) -> Parity:
        return _judge(head, fused, check, index, held_out[index], outputs, what)

    def call(model: keras.Model) -> list[np.ndarray]:
        with exact():
            return [np.asarray(output) for output in with_internals(model, fused)(images)]

    weights = weights_digest(fused.model)
    what = "the fused model"
    parity = judge(outputs, np.arange(len(rows)), what)
    judge(call(fused.model), some, f"{what}, called,")
    require_own_images(stored, outputs[0], f"{precision} features as {cached.dtype}")
    on_event(Proved(what, parity))
    with scratch() as folder:
        path = folder / "model.keras"
        save_model(fused.model, path, metadata)
        loaded = load_model(path).model
    what = "the saved file"
    outputs = _one_by_one(with_internals(loaded, fused), data, rows[some])
    of_file = judge(outputs, some, what)
    judge(call(loaded), some, f"{what}, called,")
    on_event(Proved(what, of_file))
    if not weights_digest(fused.model) == weights_digest(loaded) == weights:
        raise ParityError(
            "weights of the promoted model changed when it was called or saved, though nothing was "
            "trained: a layer is in training mode at inference",
            remedy="cut the backbone before that layer",
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


def _one_by_one(traced: keras.Model, data: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Predict images in their own sizes: features, scores and output, (row, …)."""
    with exact():
        parts = [traced.predict_on_batch(data.image(int(row))[None]) for row in rows]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _computed(backbone: Backbone, ref: LayerRef, data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Compute the features of some rows as extraction does, (row, …)."""
    forward, parts = backbone.forward([ref]), []
    for batch in np.array_split(rows, -(-len(rows) // CALLED_ROWS)):
        parts += forward(images_of(data, backbone, batch.tolist()))
    return np.concatenate(parts)


def _feature_check(
    backbone: Backbone,
    ref: LayerRef,
    cached: StoredRows,
    stored: np.ndarray,
    dtype: np.dtype,
    images: np.ndarray,
) -> FeatureCheck:
    """Measure on a few images how strongly the network amplifies rounding."""
    (plain_features,) = backbone.reference([ref])(images)
    (rounded,) = numerics.rounded(backbone.computation([ref]))(images)
    moved = [rounded, *_derived(backbone, ref, cached, images)]
    averaged = backbone.cuts.averaged(ref)
    if averaged is None:
        return FeatureCheck(stored, dtype, plain_features, moved)
    (whole,) = backbone.reference([averaged])(images)
    means = np.abs(whole).mean(axis=tuple(range(1, whole.ndim - 1)))
    terms = means.max(axis=0).reshape(stored.shape[1:])
    return FeatureCheck(stored, dtype, plain_features, moved, terms)


def _derived(
    backbone: Backbone, ref: LayerRef, cached: StoredRows, images: np.ndarray
) -> list[np.ndarray]:
    """Derive features of some images from the layers that stored rows were derived from."""
    names: set[str] = set().union(*map(sources_of, cached.groups))
    derived: list[np.ndarray] = []
    for source in backbone.cuts.derivable_from(ref) if names else ():
        if short(backbone.prefix_digest(source)) in names:
            (whole,) = backbone.reference([source])(images)
            tail = plain(backbone.computation([ref], source=source))
            derived += tail(whole.astype(cached.dtype))
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
    share = -(-wanted // len(chosen))
    parts = np.split(stored, first[1:])
    return np.concatenate([parts[block][:share] for block in chosen])


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

    ``index`` holds their positions in the check, ``held_out`` (row,) says which of them the head
    was not trained on, and ``what`` names the model in messages.
    """
    features, scores, output = outputs
    check.require(features, index, what)
    expected = head.decision_function(features)
    tolerance = head_tolerance(head.decision_function, features)
    require_same(expected, scores, tolerance, f"the head of {what}")
    # A threshold shifts the output, so that the head's probabilities are not in it.
    probabilities = None if fused.threshold else head.predict_proba(features)
    if probabilities is not None:
        clear = expected.max(axis=1) > UNDERFLOW
        # No probability moves by more than twice what the scores do.
        allowed = 2 * tolerance + 1e-6
        require_same(probabilities[clear], output[clear], allowed, f"the probability by {what}")
    on_stored = head.decision_function(check.stored[index])
    parity = Parity.of(on_stored, scores)
    moved = parity.max_abs_diff
    require_decisive(on_stored, moved, tolerance, check.dtype, what)
    if held_out.any():
        # A head that overfits is sure of its training rows, whatever rounding does to others.
        unseen = f"{what} on held-out rows"
        require_decisive(on_stored[held_out], moved, tolerance, check.dtype, unseen)
    return parity
