"""Canonical layer names: the same whatever was built before in the process.

Keras numbers the layers that got no name of their own (``conv2d_94``) through the whole process,
so the second InceptionV3 of a process names its layers differently from the first. Here they are
ranked by that number within their class instead, which gives the names of a fresh process.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

# The names that the layers around a backbone have in a cut or promoted model.
RESERVED = ("image", "resizing", "scaling_bgr", "scaling", "reduction")


def canonical_names(operations: Sequence[tuple[Any, tuple[str, ...]]]) -> list[str]:
    """Name every layer and operation of a flat graph.

    Parameters
    ----------
    operations : sequence of (keras.Operation, tuple of str)
        In order, each once, with the names of the models that it was nested in, outermost first.

    Returns
    -------
    list of str
        Unique. Names that were given by hand stay; where two nested models give the same one,
        the later carries the name of its model before it: ``classifier.dense_in``. A name that
        a cut model uses itself (``resizing``) gets a number: ``resizing_2``. A colon, which stands
        before the reduction in a layer ref, becomes an underscore.
    """
    ranked: dict[str, list[tuple[int, int]]] = defaultdict(list)
    names: list[str] = []
    for position, (operation, _) in enumerate(operations):
        names.append(operation.name)
        number = _automatic_number(operation.name, type(operation).__name__)
        if number is not None:
            ranked[snake_case(type(operation).__name__)].append((number, position))
    for stem, members in ranked.items():
        for rank, (_, position) in enumerate(sorted(members)):
            names[position] = f"{stem}_{rank}" if rank else stem
    taken = set(RESERVED)
    for position, (_, path) in enumerate(operations):
        names[position] = _free_name(names[position].replace(":", "_"), path, taken)
        taken.add(names[position])
    return names


def snake_case(class_name: str) -> str:
    """Return the stem that Keras makes of a class name: ``Conv2D`` → ``conv2d``."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _automatic_number(name: str, class_name: str) -> int | None:
    match = re.fullmatch(re.escape(snake_case(class_name)) + r"(?:_(\d+))?", name)
    return None if match is None else int(match.group(1) or 0)


def _free_name(name: str, path: tuple[str, ...], taken: set[str]) -> str:
    if name not in taken:
        return name
    # A nested model's own automatic number must not come in through the back door.
    plain = (re.sub(r"^(functional|sequential|model)(_\d+)?$", r"\1", each) for each in path)
    name = ".".join((*plain, name))
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free
