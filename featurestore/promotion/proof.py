"""The proof: the fused model, fed image files, against the cached head, fed stored rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.promotion.events import OnEvent, Proved
from featurestore.promotion.fuse import Fused, with_scores
from featurestore.promotion.parity import Parity, compare, require, storage_tolerance
from featurestore.promotion.saved import load_model, save_model
from featurestore.scratch import scratch

if TYPE_CHECKING:
    import keras

    from featurestore.dataset import Dataset
    from featurestore.heads import Head
    from featurestore.store import FeatureGroup

PROOF_ROWS = 128
# The rows are taken from so many blocks: a block in another's place shows, and little is read.
PROOF_BLOCKS = 16
# A Keras head's scores count as logarithms of probabilities, down to the smallest in float32.
LOWEST = float(np.log(np.finfo(np.float32).tiny))
UNDERFLOW = -80.0

Scores = Callable[[np.ndarray], np.ndarray]


def prove(
    head: Head,
    fused: Fused,
    data: Dataset,
    group: FeatureGroup,
    precision: str,
    metadata: dict[str, Any],
    tell: OnEvent,
) -> Parity:
    """Prove that a fused model is the predictor that its head is; then that its file is.

    Parameters
    ----------
    head : Head
        Its features are in ``group``.
    fused : Fused
        The head on its backbone, before anything is trained.
    data : Dataset
        The samples of the features, with their images.
    group : FeatureGroup
        The stored features.
    precision : str
        The types that they were computed in, joined by ``+``.
    metadata : dict
        What the file holds beside the model.
    tell : callable
        Receives a :class:`Proved` for each.

    Returns
    -------
    Parity
        Of the fused model's scores.

    Raises
    ------
    ParityError
        Where they disagree.
    """
    rows = proof_rows(group)
    stored = group.read(rows, dtype="float32")
    comparable = _comparable(head)
    expected = comparable(head.scores(stored))
    tolerance = storage_tolerance(
        lambda each: comparable(head.scores(each)), stored, group.dtype, precision
    )
    likely = head.predict_proba(stored)
    # Where all its sigmoids underflow, scikit-learn calls the classes equally likely.
    told = expected.max(axis=1) > UNDERFLOW

    def check(model: keras.Model, what: str) -> Parity:
        scores, output = _predicted(with_scores(model, fused.scores), data, rows)
        parity = compare(expected, comparable(scores), tolerance)
        require(parity, what)
        if likely is not None:
            # No probability moves by more than twice what the scores do.
            likeness = compare(likely[told], output[told], 2 * tolerance + 1e-6)
            require(likeness, f"the probability by {what}")
        tell(Proved(what, parity))
        return parity

    parity = check(fused.model, "the fused model")
    with scratch() as folder:
        path = folder / "model.keras"
        save_model(fused.model, path, metadata)
        check(load_model(path)[0], "the saved file, loaded anew,")
    return parity


def proof_rows(group: FeatureGroup) -> np.ndarray:
    """Return the rows that are compared: some of each of several blocks, spread over all.

    Content order is a fair shuffle, so that these are a random sample.
    """
    blocks = np.unique(np.linspace(0, group.blocks - 1, PROOF_BLOCKS).astype(int))
    each = -(-PROOF_ROWS // len(blocks))
    starts = blocks * group.block_rows
    ends = np.minimum(starts + min(each, group.block_rows), group.shape[0])
    return np.concatenate([np.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)])


def _comparable(head: Head) -> Scores:
    """Return what makes scores comparable: a softmax forgets a constant added to all logits.

    A head whose softmax is inside a nested model tells logarithms of probabilities, not logits.
    """
    if head.kind != "keras" or head.task == "regression":
        return lambda scores: scores

    def log_probabilities(scores: np.ndarray) -> np.ndarray:
        scores = np.asarray(scores, np.float64)
        scores = scores - scores.max(axis=1, keepdims=True)
        scores = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return np.maximum(scores, LOWEST)

    return log_probabilities


def _predicted(model: keras.Model, data: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Predict as a user would: whole images of their own sizes, one by one, by Keras itself."""
    found = [model.predict_on_batch(data.image(int(row))[None]) for row in rows]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]
