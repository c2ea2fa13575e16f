"""Bounds of the trees inside a loaded estimator, which compiled code follows without checking them.

scikit-learn walks decision trees and neighbour trees in C by the indices stored in them. An index
out of range, in a file that came from elsewhere, would read foreign memory or end the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fault(estimator: Any) -> str | None:
    """Find a tree whose indices lead out of its arrays.

    Parameters
    ----------
    estimator : object
        As loaded, before anything is predicted with it.

    Returns
    -------
    str or None
        What is wrong; None where every tree is sound.
    """
    seen: set[int] = set()
    waiting: list[tuple[Any, int | None]] = [(estimator, None)]
    while waiting:
        found, width = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        check = _CHECKS.get(type(found).__name__)
        if check is not None and not check(found, width):
            return f"a {type(found).__name__} with indices out of range"
        if _is_forest(found) and not _members_fit(found):
            return f"a {type(found).__name__} whose trees take other rows than it does"
        waiting.extend(_parts(found, width))
    return None


def _parts(found: Any, width: int | None) -> list[tuple[Any, int | None]]:
    """Return what an object holds, each with the features that a row has there."""
    if isinstance(found, list | tuple | set):
        return [(each, width) for each in found]
    if isinstance(found, dict):
        return [(each, width) for each in found.values()]
    if isinstance(found, np.ndarray):
        return [(each, width) for each in found.flat] if found.dtype.hasobject else []
    own = getattr(found, "__dict__", None)
    if not own:
        return []
    features = own.get("n_features_in_", width)
    return [(each, features) for each in own.values()]


def _is_forest(found: Any) -> bool:
    return type(found).__module__ in ("sklearn.ensemble._forest", "sklearn.ensemble._gb")


def _members_fit(forest: Any) -> bool:
    """Whether all trees take what the forest takes: it hands its rows to them unchecked."""
    members = np.asarray(vars(forest).get("estimators_", []), dtype=object).ravel()
    width = vars(forest).get("n_features_in_")
    return all(vars(each).get("n_features_in_") == width for each in members)


def _decision_tree(tree: Any, width: int | None) -> bool:
    state = tree.__getstate__()
    nodes, count = state["nodes"], state["node_count"]
    inner = nodes["left_child"] != -1
    return (
        tree.n_features == width
        and 0 < count == len(nodes) == len(state["values"])
        and _ahead(nodes["left_child"], inner)
        and _ahead(nodes["right_child"], inner)
        and _within(nodes["feature"][inner], tree.n_features)
    )


def _boosted_tree(tree: Any, width: int | None) -> bool:
    nodes = tree.nodes
    inner = nodes["is_leaf"] == 0
    sets = nodes["bitset_idx"][inner & (nodes["is_categorical"] != 0)]
    return (
        width is not None
        and len(nodes) > 0
        and _ahead(nodes["left"], inner)
        and _ahead(nodes["right"], inner)
        and _within(nodes["feature_idx"][inner], width)
        and _within(sets, min(len(tree.raw_left_cat_bitsets), len(tree.binned_left_cat_bitsets)))
    )


def _neighbour_tree(tree: Any, width: int | None) -> bool:
    data, rows, nodes, bounds, _, levels, count, *_ = tree.__getstate__()
    children = 2 * np.arange(len(nodes)) + 2
    inner = nodes["is_leaf"] == 0
    return (
        data.shape[1] == width
        and len(rows) == len(data)
        and _within(rows, len(data))
        and 0 < count == len(nodes) == bounds.shape[1] == 2**levels - 1
        and bounds.shape[2] == width
        and _within(children[inner], count)
        and _within(nodes["idx_start"], len(data) + 1)
        and _within(nodes["idx_end"], len(data) + 1)
        and bool((nodes["idx_start"] <= nodes["idx_end"]).all())
    )


def _ahead(children: np.ndarray, inner: np.ndarray) -> bool:
    """Whether each inner node's child comes after it, so that a walk ends, and exists."""
    number = np.flatnonzero(inner)
    child = children[inner].astype(np.int64)
    return bool(((child > number) & (child < len(children))).all())


def _within(index: np.ndarray, size: int) -> bool:
    return bool(((index >= 0) & (index < size)).all())


_CHECKS = {
    "Tree": _decision_tree,
    "TreePredictor": _boosted_tree,
    "KDTree": _neighbour_tree,
    "BallTree": _neighbour_tree,
}
