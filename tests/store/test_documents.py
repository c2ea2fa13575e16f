from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.errors import DamagedError
from featurestore.store.documents import compare_json, read_json, write_json
from featurestore.store.local import LocalFiles


@pytest.mark.parametrize("document", [{"a": 1}, {"attributes": {"b": [None]}}])
def test_a_changed_byte_is_found_and_named(tmp_path: Path, document: dict[str, object]) -> None:
    files = LocalFiles(str(tmp_path))
    write_json(files, "d.json", document)
    assert read_json(files, "d.json") == document
    assert compare_json(files, {"d.json": document}) == {}
    data = files.read("d.json")
    for broken in (data + b" ", data[:-3], b"[1]", b"[" * 100_000):
        files.write("d.json", broken)
        with pytest.raises(DamagedError, match=r"d\.json .*; run `featurestore repair`"):
            read_json(files, "d.json")
    wrong = compare_json(files, {"d.json": document, "gone.json": {}})
    assert [*wrong] == ["d.json", "gone.json"]


def test_what_json_has_no_form_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(LocalFiles(str(tmp_path)), "d.json", {"a": float("nan")})
