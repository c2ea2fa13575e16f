from __future__ import annotations

import pytest

from featurestore.extraction import measure
from tests.cli.conftest import Place
from tests.toys import featurestore, tree

DOCTOR = ["doctor", "photos", "--model", "tiny.keras", "--layer", "conv_b:avg"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.02)


def test_a_table_says_what_the_machine_can_do(place: Place) -> None:
    before = tree(place.folder)

    result = featurestore(*DOCTOR)

    assert result.status == 0, result.err
    lines = result.out.splitlines()
    starts = ("read", "decode", "forward, openvino float32", "forward, tensorflow float32", "write")
    for start in (*starts, "An extraction reaches about"):
        assert any(line.startswith(start) for line in lines), (start, result.out)
    assert "36 images of photos" in result.out
    assert "tiny at 16×16 to conv_b:avg" in result.out
    assert tree(place.folder) == before


def test_json_holds_the_same(place: Place) -> None:
    report = featurestore(*DOCTOR, "--engine", "tensorflow", "--store", "new", "--json").json

    assert set(report) == {
        *("model", "input_size", "layers", "source", "images", "stages", "forward", "bytes"),
        *("place", "processors", "free_memory", "gpus", "unused_gpus", "bottleneck"),
        *("images_per_second", "advice"),
    }
    assert (report["model"], report["layers"]) == ("tiny", ["conv_b:avg"])
    assert report["forward"][0]["engine"] == "tensorflow"
    assert report["place"] == str(place.folder)
    assert set(report["stages"]) == {"read", "decode", "forward", "write"}
    assert not (place.folder / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "vgg61"], ["'vgg61'", "did you mean", "VGG16"]),
        (["foto"], ["does not exist", "did you mean 'photos'"]),
        (["--layer", "conv_c"], ["'conv_c'", "did you mean 'conv_b'"]),
        (["--store", "tiny.keras/store"], ["cannot write to", "name another place with --store"]),
        (["--store", "photos"], ["not a store", "--store"]),
    ],
)
def test_a_mistake_gives_one_line(place: Place, arguments: list[str], expected: list[str]) -> None:
    before = tree(place.folder)
    model = [] if "--model" in arguments else ["--model", "tiny.keras"]

    result = featurestore("doctor", *model, *arguments)

    assert all(part in result.error for part in expected), result.error
    assert result.out == ""
    assert tree(place.folder) == before
