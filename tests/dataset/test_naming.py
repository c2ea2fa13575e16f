from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestore.dataset import Dataset
from tests.dataset.conftest import table


def test_stored_options_scan_the_same_again(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [
        {"file": row["path"], "label": row["label"], "who": "ab"[n // 2]}
        for n, row in enumerate(listed)
    ]
    path = table(tmp_path / "t.csv", rows)
    one = Dataset.open(path, image_column="file", group_by="who", val=0.4, seed=3)
    two = Dataset.open(str(one.source), name=one.name, **one.options)
    assert (two.manifest_digest, two.options) == (one.manifest_digest, one.options)
    one = Dataset.open(tmp_path / "img", group_by="^[01]", test=0.1)
    two = Dataset.open(str(one.source), name=one.name, **one.options)
    assert (two.manifest_digest, two.options) == (one.manifest_digest, one.options)
