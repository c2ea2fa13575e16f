from __future__ import annotations

import subprocess
import sys

import pytest

from featurestore.errors import FeatureStoreError
from tests.cli.conftest import Place
from tests.toys import featurestore

PROGRAM = """
import logging, warnings
from featurestore.cli.output import quiet_libraries
quiet_libraries()
quiet_libraries()
from featurestore.errors import FeatureStoreWarning
warnings.warn("a library's own", UserWarning)
warnings.warn("soon gone", DeprecationWarning)
warnings.warn("ours, in two\\n lines", FeatureStoreWarning)
warnings.warn("ours, in two lines", FeatureStoreWarning)
"""


def run(program: str, *options: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_warnings_of_libraries_are_silent_and_ours_take_a_line() -> None:
    assert run(PROGRAM) == ("", "warning: ours, in two lines\n")


def test_python_options_show_all_warnings() -> None:
    lines = run(PROGRAM, "-W", "default")[1].splitlines()

    assert [line.partition(" (")[0] for line in lines] == [
        "warning: a library's own",
        "warning: soon gone",
        "warning: ours, in two lines",
    ]


TRAIN = "train photos --model tiny --layer conv_b:avg --head"
STORED = "name: many\ndata: photos\nheads: [knn, {head}]\n"
RUN = """name: x
data: {path: photos}
backbone: {model: tiny.keras}
layers: [conv_b]
heads: [knn]
"""


@pytest.mark.parametrize(
    ("command", "loads"),
    [
        (f"{TRAIN} logistic", False),
        (f"{TRAIN} dense", True),
        ("run logistic.yaml", False),
        ("run dense.yaml", True),
        ("run run.yaml", True),
        ("repair", False),
    ],
)
def test_commands_load_tensorflow_before_they_need_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, command: str, loads: bool
) -> None:
    """They load it without its notes; scikit-learn heads and a sound store do not need it."""
    for head in ("logistic", "dense"):
        (place.folder / f"{head}.yaml").write_text(STORED.format(head=head))
    (place.folder / "run.yaml").write_text(RUN)

    def load() -> None:
        raise FeatureStoreError("TensorFlow is loaded")

    for module in ("heads.fitting", "backbone.sources", "bars"):
        monkeypatch.setattr(f"featurestore.{module}.load_tensorflow", load)

    result = featurestore(*command.split())

    assert (result.status, "TensorFlow is loaded" in result.err) == (int(loads), loads)
