"""Canonical layer names: the same whatever was built before in the process.

Keras numbers layers without a name of their own (``conv2d_94``) through the whole process, so that
the second InceptionV3 of a process names its layers differently from the first. Here they are
ranked by that number within their class, which gives the names of a fresh process.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

# Names of the layers around a backbone in a cut or promoted model.
RESERVED = ("image", "resizing", "scaling_bgr", "scaling", "reduction")


def canonical_names(operations: Sequence[tuple[Any, tuple[str, ...]]]) -> list[str]:
    """Name every layer and operation of a flat graph.

    Parameters
    ----------
    operations : sequence of (keras.Operation, tuple of str)
        In order, each once, with the names of the models that it is nested in, outermost first.

    Returns
    -------
    list of str
        Unique. Names that the user chose stay; if two nested models use the same one, the later
        layer gets the name of its model in front: ``classifier.dense_in``. A name that a cut model
        uses itself (``resizing``) gets a number: ``resizing_2``. A colon, which separates the
        reduction in a layer ref, becomes an underscore.
    """
    from keras.src.utils.naming import to_snake_case

    ranked: dict[str, list[tuple[int, int]]] = defaultdict(list)
    names: list[str] = []
    for position, (operation, _) in enumerate(operations):
        names.append(operation.name)
        stem = to_snake_case(type(operation).__name__)
        automatic = re.fullmatch(re.escape(stem) + r"(?:_(\d+))?", operation.name)
        if automatic:
            ranked[stem].append((int(automatic[1] or 0), position))
    for stem, members in ranked.items():
        for rank, (_, position) in enumerate(sorted(members)):
            names[position] = f"{stem}_{rank}" if rank else stem
    taken = set(RESERVED)
    for position, (_, path) in enumerate(operations):
        names[position] = _free_name(names[position].replace(":", "_"), path, taken)
        taken.add(names[position])
    return names


def _free_name(name: str, path: tuple[str, ...], taken: set[str]) -> str:
    if name not in taken:
        return name
    # The automatic number of the nested model depends on what was built before.
    plain = (re.sub(r"^(functional|sequential|model)(_\d+)?$", r"\1", each) for each in path)
    name = ".".join((*plain, name))
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free
