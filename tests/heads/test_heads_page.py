from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "heads.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_page_names_every_ready_made_head() -> None:
    from featurestore.heads import KERAS_HEADS, SKLEARN_HEADS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in [*SKLEARN_HEADS, *KERAS_HEADS])
