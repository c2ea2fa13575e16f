"""Prove that a fused model on image files equals the cached head on stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.backbone import LayerRef, numerics
from featurestore.backbone.forward import exact
from featurestore.errors import NotFoundError, ParityError
from featurestore.extraction.run import extract_command
from featurestore.listening import OnEvent
from featurestore.promotion.events import Proved
from featurestore.promotion.fuse import Fused, with_internals
from featurestore.promotion.parity import FeatureCheck, Parity, compare, head_tolerance, require
from featurestore.promotion.saved import load_model, save_model, weights_digest
from featurestore.scratch import scratch

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.heads import Head
    from featurestore.store import FeatureGroup

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

    Images are predicted one by one, in their own sizes, as a user would. The model is also called
    on a batch, as export and nesting do. Then the file is saved, with its metadata, loaded by
    Keras, and compared in both ways. No weight may change. Blocks of the head's features that were
    never extracted are left out.

    Returns
    -------
    Parity
        Of the fused model.

    Raises
    ------
    ParityError
        If they disagree, if a weight changes, or if rounding decides too much for a proof.
    NotFoundError, IncompleteFeaturesError
        If the features were removed, or no block of them exists.
    """
    group = _stored(head, backbone, data)
    rows = proof_rows(group)
    few = np.unique(np.linspace(0, len(rows) - 1, CALLED_ROWS).astype(int))
    images = np.stack([data.image(int(row), backbone.resize) for row in rows[few]])
    stored = group.read(rows, dtype="float32")
    ref = LayerRef.parse(head.key.ref)
    passes = (backbone.reference([ref]), numerics.rounded(backbone, [ref]))
    plain, rounded = (each(images[:ROUNDED_ROWS])[0] for each in passes)
    check = FeatureCheck(stored, group.dtype, backbone.precision(ref.layer), plain, rounded)
    check.require_distinct()
    held_out = data.splits[rows] != "train"

    def both_ways(model: keras.Model, index: np.ndarray, what: str) -> Parity:
        traced = with_internals(model, fused)
        with exact():
            found = [traced.predict_on_batch(data.image(int(row))[None]) for row in rows[index]]
            called = [np.asarray(each) for each in traced(images)]
        outputs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        parity = _judge(head, check, index, held_out, outputs, what)
        _judge(head, check, few, held_out, called, f"{what}, called,")
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


def _stored(head: Head, backbone: Backbone, data: Dataset) -> FeatureGroup:
    """Open the features of a head, which may have been removed since."""
    try:
        return head.store.features.get(head.key)
    except NotFoundError as error:
        raise NotFoundError(
            f"the features of {head.id} are no longer in {head.store.location}, and the proof "
            f"needs them; extract them again with `{extract_command(data, backbone, head.key.ref)}`"
        ) from error


def proof_rows(group: FeatureGroup) -> np.ndarray:
    """Return the rows to compare, from blocks that exist."""
    missing = group.missing()
    stored = np.setdiff1d(np.arange(group.blocks), missing)
    if not len(stored):
        raise group.incomplete(missing)
    return spread(stored, group.block_rows, group.shape)


def spread(blocks: np.ndarray, block_rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return some rows of each of several blocks, spread over all.

    Content order is a fair shuffle, so that these are a random sample.

    Examples
    --------
    >>> spread(np.arange(3), 100, (250, 8))[[0, 42, 43, -1]]
    array([  0,  42, 100, 242])
    """
    row_bytes = 4 * int(np.prod(shape[1:]))
    wanted = int(np.clip(PROOF_BYTES // row_bytes, PROOF_BLOCKS, PROOF_ROWS))
    chosen = blocks[np.unique(np.linspace(0, len(blocks) - 1, PROOF_BLOCKS).astype(int))]
    starts = chosen * block_rows
    ends = np.minimum(starts + min(-(-wanted // len(chosen)), block_rows), shape[0])
    return np.concatenate([np.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)])


def _judge(
    head: Head,
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
    expected, arithmetic = head.scores(features), head_tolerance(head.scores, features)
    _require_equal(expected, scores, arithmetic, f"the head of {what}")
    likely = head.predict_proba(features)
    if likely is not None:
        clear = expected.max(axis=1) > UNDERFLOW
        # No probability moves by more than twice what the scores do.
        probability = f"the probability by {what}"
        _require_equal(likely[clear], output[clear], 2 * arithmetic + 1e-6, probability)
    measured = head.scores(check.stored[index])
    rounding = float(np.abs(expected - measured).max())
    parity = compare(measured, scores, rounding + arithmetic)
    require(parity, measured, check.dtype, what)
    apart = held_out[index]
    if apart.any():
        # A head that overfits is sure of its training rows, whatever rounding does to others.
        unseen = compare(measured[apart], scores[apart], rounding + arithmetic)
        require(unseen, measured[apart], check.dtype, f"{what} on held-out rows")
    return parity


def _require_equal(expected: np.ndarray, found: np.ndarray, tolerance: float, what: str) -> None:
    difference = np.abs(expected - found).max(initial=0)
    if not difference <= tolerance:
        raise ParityError(
            f"{what} differs from the cached head on equal features by up to {difference:.3g}, "
            f"where float32 arithmetic explains {tolerance:.3g}; nothing was trained or saved. "
            "Train the head again with `featurestore train`, or report its estimator and parameters"
        )
