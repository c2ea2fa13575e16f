"""Prove that a fused model on image files equals the cached head on stored rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import exact
from featurestore.errors import NotFoundError, ParityError
from featurestore.extraction.run import extract_command
from featurestore.listening import OnEvent
from featurestore.promotion.events import PromotionStageStarted, Proved
from featurestore.promotion.fuse import Fused, with_internals
from featurestore.promotion.onnx_model import OnnxModel
from featurestore.promotion.parity import (
    Parity,
    head_tolerance,
    require_same_features,
    require_same_scores,
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

# Runs of neighbouring rows: swapped blocks show, and few blocks are read.
PROOF_RUNS, RUN_ROWS = 16, 8
# Rows of wide layers are limited to this many bytes.
PROOF_BYTES = 2**28
# Rows that the saved file is called on.
FILE_ROWS = 8


def prove(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    metadata: dict[str, Any],
    on_event: OnEvent,
) -> Parity:
    """Prove that a fused model, and its saved file, predict what the cached head predicts.

    The model predicts images one by one, in their own sizes, as a user would. Then the file is
    saved, with its metadata, loaded by Keras, and called, as export and nesting do. No weight may
    change. The stored rows may be in any array of the same prefix and reduction.

    Returns
    -------
    Parity
        Of the fused model.

    Raises
    ------
    ParityError
        If they disagree, or if a weight changes.
    NotFoundError
        If too few of the head's samples are stored.
    """
    cached = _stored(head, backbone, data)
    rows = proof_rows(cached.block_of, 4 * int(np.prod(cached.shape[1:])))
    on_event(PromotionStageStarted(f"prove on {plural(len(rows), 'image')}"))
    stored = cached.read(rows, dtype="float32")
    precision = backbone.computing.precision

    # Where a pixel lies between two grey levels, the resize of ONNX may take the other one.
    resized = (backbone.resize,) if backbone.is_onnx else ()

    def judge(predict: Callable[[np.ndarray], Any], some: np.ndarray, what: str) -> np.ndarray:
        with exact():
            predicted = [predict(data.image(int(row), *resized)[None]) for row in rows[some]]
        features, scores, output, *_ = map(np.concatenate, zip(*predicted, strict=True))
        require_same_features(stored[some], features, precision, what)
        _require_same_head(head, fused, features, scores, output, what)
        return scores

    weights = weights_digest(fused.model)
    predict = with_internals(fused.model, fused).predict_on_batch
    scores = judge(predict, np.arange(len(rows)), "the fused model")
    with scratch() as folder:
        path = folder / ("model.onnx" if backbone.is_onnx else "model.keras")
        save_model(fused.model, path, metadata)
        loaded = load_model(path).model
    few = np.unique(np.linspace(0, len(rows) - 1, FILE_ROWS).astype(int))
    judge(with_internals(loaded, fused), few, "the saved file")
    if not weights_digest(fused.model) == weights_digest(loaded) == weights:
        raise ParityError(
            "weights of the promoted model changed when it was called or saved, though nothing was "
            "trained: a layer is in training mode at inference",
            remedy="cut the backbone before that layer",
        )
    if backbone.is_onnx:
        scores = _resized_alike(fused.model, backbone, [data.image(int(row)) for row in rows])
    parity = Parity.of(head.decision_function(stored), scores)
    on_event(Proved(parity))
    return parity


def _resized_alike(
    model: OnnxModel, backbone: Backbone, images: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the scores of a model for images that it resizes itself.

    Raises ParityError if a pixel is more than one grey level from the one that was extracted.
    """
    predict, scores = model.with_internals(), []
    for image in images:
        _, score, _, pixels = predict(image[None])
        apart = int(np.abs(pixels[0].astype(int) - backbone.resize(image)).max())
        if apart > 1:
            raise ParityError(
                f"onnxruntime resizes an image of {image.shape[0]}×{image.shape[1]} to pixels that "
                f"differ by up to {apart} grey levels from those that were extracted",
                "at most 1",
                "use another release of onnxruntime, or images that have the input size",
            )
        scores.append(score)
    return np.concatenate(scores)


def _stored(head: Head, backbone: Backbone, data: Dataset) -> StoredRows:
    """Find enough of a head's samples to prove a model on them, in any arrays."""
    # A view is not an image that a model could be called on.
    is_view = data.image_rows != np.arange(len(data))
    rows = RowIndex(head.store.features).find(head.key, data.sample_ids).without(is_view)
    needed = min(FEWEST_ROWS, int(np.count_nonzero(~is_view)))
    if rows.count < needed:
        raise NotFoundError(
            f"the features of {head.id} in {head.store.location} are incomplete: {rows.count:,} of "
            f"its {len(data):,} samples are stored, and the proof needs {needed}",
            remedy=f"extract them again with `{extract_command(data, backbone, head.key.ref)}`",
        )
    return rows


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
    >>> proof_rows(np.arange(250) // 100, 32)[[0, 7, 8, -1]]
    array([  0,   7,  16, 249])
    """
    stored = np.argsort(block_of, kind="stable")[np.count_nonzero(block_of < 0) :]
    run = int(np.clip(PROOF_BYTES // (PROOF_RUNS * row_bytes), 1, RUN_ROWS))
    starts = np.linspace(0, max(0, len(stored) - run), PROOF_RUNS).astype(int)
    return stored[np.unique(starts[:, None] + np.arange(min(run, len(stored))))]


def _require_same_head(
    head: Head,
    fused: Fused,
    features: np.ndarray,
    scores: np.ndarray,
    output: np.ndarray,
    what: str,
) -> None:
    """Raise ParityError if a model's head differs from the cached one on the same features."""
    expected = head.decision_function(features)
    tolerance = head_tolerance(head.decision_function, features)
    require_same_scores(expected, scores, tolerance, f"the head of {what}")
    # A threshold shifts the output, so that the head's probabilities are not in it.
    probabilities = None if fused.threshold else head.predict_proba(features)
    if probabilities is not None:
        # No probability moves by more than twice what the scores do.
        allowed = 2 * tolerance + 1e-6
        require_same_scores(probabilities, output, allowed, f"the probability by {what}")
