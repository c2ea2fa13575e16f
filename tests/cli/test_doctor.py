from __future__ import annotations

import pytest

from featurestore.extraction import stages
from tests.cli.conftest import Place
from tests.toys import featurestore, tree

DOCTOR = ["doctor", "photos", "--model", "tiny.keras", "--layer", "conv_b:avg"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SECONDS", 0.02)


def test_a_table_says_what_the_machine_can_do(place: Place) -> None:
    before = tree(place.folder)

    result = featurestore(*DOCTOR)

    assert result.status == 0, result.err
    lines = result.out.splitlines()
    for begin in ("processor", "memory", "engine openvino", "engine tensorflow", "float32",
                  "bfloat16", "float16", "decode, resize", "forward, tensorflow float32",
                  "compress", "write", "An extraction reaches about"):  # fmt: skip
        assert any(line.startswith(begin) for line in lines), (begin, result.out)
    assert "images of photos, 24×20" in result.out
    assert "tiny at 16×16 to conv_b:avg" in result.out
    assert tree(place.folder) == before


def test_json_holds_the_same(place: Place) -> None:
    report = featurestore(*DOCTOR, "--engine", "tensorflow", "--store", "new", "--json").json

    assert set(report) == {
        "devices", "engines", "precisions", "model", "input_size", "layers", "images", "decode",
        "forward", "disk", "bytes", "stages", "cores_given", "bottleneck",
        "images_per_second", "advice", "seconds",
    }  # fmt: skip
    assert (report["model"], report["layers"]) == ("tiny", ["conv_b:avg"])
    assert report["forward"][0]["engine"] == "tensorflow"
    assert report["disk"]["place"] == str(place.folder)
    assert set(report["stages"]) == {"decode", "forward", "compress", "write"}
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
