"""Which of these tests stand for a promise of ``docs/reliability.md`` among the quick tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# Runs by default. All others of this folder are marked `reliability` (see conftest.py).
promise = pytest.mark.promise


def few(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Return all cases of a parametrized test, of which few run by default."""
    cases = list(cases)
    assert set(quick) <= set(cases)
    return [pytest.param(case, marks=promise) if case in quick else case for case in cases]
