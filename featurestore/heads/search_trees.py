"""Bounds of what is inside a loaded estimator, which compiled code follows without checking them.

scikit-learn walks decision trees, neighbour trees and support vectors in C by the indices and
sizes stored in them. One out of range, in a file from elsewhere, would read or write foreign memory
or end the process.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fault(estimator: Any) -> str | None:
    """Find what leads out of its arrays.

    Parameters
    ----------
    estimator : object
        As loaded, before anything is predicted with it.

    Returns
    -------
    str or None
        What is wrong; None where all is sound.
    """
    try:
        return _fault(estimator)
    except Exception as error:  # what is not of the form that scikit-learn gives it
        return f"an estimator of another form than its own ({' '.join(str(error).split())[:100]})"


def _fault(estimator: Any) -> str | None:
    seen: set[int] = set()
    boosted = []
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
        if type(found).__module__ == "sklearn.ensemble._gb":
            boosted.append(found)
        waiting.extend(_parts(found, width))
    for each in boosted:
        # Only when all that it is made of is sound: this asks it for its first guess.
        if vars(each).get("estimators_") is not None and not _columns_fit(each):
            return f"a {type(each).__name__} whose trees give other columns than it has"
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


def _columns_fit(boosted: Any) -> bool:
    """Whether the trees of an iteration add to as many columns as there are."""
    row = np.zeros((1, boosted.n_features_in_), np.float32)
    columns = boosted._raw_predict_init(row).shape[1]
    return bool(columns == boosted.estimators_.shape[1] == boosted.n_trees_per_iteration_)


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


def _support_vectors(machine: Any, width: int | None) -> bool:
    own = vars(machine)
    if "support_vectors_" not in own:
        return True  # not fitted
    classifies = machine._impl in ("c_svc", "nu_svc")
    classes = len(own["_n_support"]) if classifies else 2
    vectors, pairs = own["support_vectors_"], classes * (classes - 1) // 2
    # Features are rows of numbers: neither sparse, nor distances to what it was fitted on.
    return (
        not own["_sparse"]
        and isinstance(machine.kernel, str)
        and machine.kernel != "precomputed"
        and classes >= 2
        and vectors.shape == (len(own["support_"]), own["n_features_in_"])
        and own["_dual_coef_"].shape == (classes - 1, len(vectors))
        and own["_intercept_"].shape == (pairs,)
        and all(own[name].shape in ((0,), (pairs,)) for name in ("_probA", "_probB"))
        and len(own["_n_support"]) >= 1
        and bool((own["_n_support"] >= 0).all())
        and (not classifies or int(own["_n_support"].sum()) == len(vectors))
    )


def _bins(mapper: Any, width: int | None) -> bool:
    own = vars(mapper)
    if "bin_thresholds_" not in own:
        return True  # not fitted
    return len(own["bin_thresholds_"]) == len(own["is_categorical_"]) == width


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
    "_BinMapper": _bins,
    **dict.fromkeys(("SVC", "NuSVC", "SVR", "NuSVR", "OneClassSVM"), _support_vectors),
}
