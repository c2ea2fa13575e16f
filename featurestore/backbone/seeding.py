"""Keras layers that come out the same every time they are made."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

RANDOM_SEED = 0


@contextlib.contextmanager
def seeded(seed: int = RANDOM_SEED) -> Iterator[None]:
    """Make Keras layers inside draw their seeds from ``seed``.

    Keras takes the seeds of initializers and of dropout from Python's random generator. Its state
    is restored afterwards; no other global generator is touched.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
