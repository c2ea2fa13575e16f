from __future__ import annotations

import pytest

from tests.cli.conftest import Place
from tests.toys import featurestore, featurestore_process


def test_layers_are_a_table_or_a_list_of_rows(place: Place) -> None:
    shown = featurestore("layers", "tiny.keras")
    rows = featurestore("layers", "tiny.keras", "--json").json

    assert [row["name"] for row in rows] == ["scale", "conv_a", "pool_a", "conv_b", "gap"]
    assert rows[1] == {
        "name": "conv_a",
        "kind": "Conv2D",
        "shape": [16, 16, 8],
        "parameters": 224,
        "flops": 2 * 3 * 3 * 3 * 8 * 16 * 16,
        "bytes": 16 * 16 * 8 * 2,
        "tail": True,
    }
    assert " ".join(shown.out.splitlines()[2].split()) == (
        "conv_a Conv2D 16 x 16 x 8 224 110.6 kFLOP 4.1 kB yes"
    )


@pytest.mark.reliability
def test_a_process_that_starts_tensorflow_writes_nothing_but_the_answer(place: Place) -> None:
    result = featurestore_process("layers", "tiny.keras", "--json")

    assert (result.status, result.err) == (0, "")
    assert len(result.json) == 5
