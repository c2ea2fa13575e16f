from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from featurestore import objects
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, SourceChangedError
from tests.dataset.conftest import folder, of_kind, png, put, table, wrong


def test_a_larger_file_than_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, cat=1)
    put(tmp_path / "cat" / "large.bmp", 3).write_bytes(b"BM" + b"\0" * 5000)
    monkeypatch.setattr("featurestore.dataset.source.MAX_BYTES", 4000)
    found = Dataset.open(tmp_path)
    assert wrong(found)[0].reason == "larger than 4,000 bytes"


def test_absolute_paths_uris_and_bytes_marks(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [
        {"path": str(tmp_path / "img" / "0.png"), "label": "x"},
        {"path": (tmp_path / "img" / "1.png").as_uri(), "label": "y"},
        {"path": "img/../img/2.png", "label": "z"},
    ]
    path = table(tmp_path / "t.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    found = Dataset.open(path)
    assert (len(found), found.classes, wrong(found)) == (3, ("x", "y", "z"), ())
    assert Dataset.from_parquet(found.to_parquet()).paths == found.paths


def test_tables_and_images_behind_uris(tmp_path: Path) -> None:
    memory, _ = objects.locate("memory://")
    for number in range(3):
        memory.put(f"shop/img/{number}.png", png(number))
    memory.put("shop/bad.png", b"junk")
    memory.put(
        "shop/list.csv",
        b"path,label\nimg/0.png,1\nimg/1.png,2\nmemory://shop/img/2.png,1\n"
        b"/shop/none.png,1\nmemory://shop/bad.png,2\n",
    )
    shop = Dataset.open("memory://shop/list.csv")
    assert (shop.name, shop.source) == ("list", "memory://shop/list.csv")
    assert (len(shop), shop.classes) == (3, (1, 2))
    assert shop.image(0).shape == (3, 4, 3)
    assert len(of_kind(shop, "quarantined")) == 2
    memory.put("shop/img/0.png", png(99))
    row = shop.paths.index("memory://shop/img/0.png")
    with pytest.raises(SourceChangedError, match="has changed since it was scanned"):
        shop.image(row)
    assert len(Dataset.from_parquet(shop.to_parquet()).image((row + 1) % 3)) > 0
    with pytest.raises(DatasetError, match="nosuch"):
        Dataset.open("nosuch://shop/list.csv")
    memory.put("shop/list.csv", b"path\nnosuch://x/a.png\n")
    with pytest.raises(DatasetError, match="nosuch"):
        Dataset.open("memory://shop/list.csv")


def test_paths_that_cannot_be_files(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [*listed, {"path": "img", "label": "a"}, {"path": "nul\0.png", "label": "a"}]
    os.mkfifo(tmp_path / "pipe.png")
    rows.append({"path": "pipe.png", "label": "a"})
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "t.parquet")
    found = Dataset.open(tmp_path / "t.parquet")
    assert sorted(each.reason for each in wrong(found)) == [
        "embedded null byte",
        "not a regular file",
        "not a regular file",
    ]
