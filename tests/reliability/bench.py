"""A place where real commands run, and the states that it can be in before one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.reliability.processes import Commands, Running
from tests.toys import Result, build_network, featurestore, take_photos

EXTRACT = (
    *("extract", "photos", "--model", "tiny.keras", "--val", "0.3"),
    *("--layer", "conv_a", "--layer", "pool_a"),
)
TRAIN = ("train", "photos", "--model", "tiny", "--layer", "pool_a", "--head", "logistic")
MANY = {
    "name": "many",
    "data": "photos",
    "layers": ["pool_a"],
    "heads": [
        "knn",
        {"head": "logistic", "grid": {"C": [0.1, 1]}},
        {"head": "dense", "params": {"epochs": 3}},
    ],
}
PIPELINE = {
    "name": "flowers",
    "data": {"path": "photos", "val": 0.3},
    "backbone": {"model": "tiny.keras"},
    "layers": ["conv_a", "pool_a:avg"],
    "heads": ["ridge"],
    "promote": {"unfreeze": "conv_a", "epochs": 1, "learning_rate": 1e-4},
}


@dataclass(frozen=True)
class Verb:
    """A command that is killed, and the state of things before it."""

    before: str
    command: tuple[str, ...]


VERBS = {
    "extract": Verb("fresh", EXTRACT),
    "extract one layer": Verb("fresh", EXTRACT[:-2]),
    "replace": Verb("extracted", (*EXTRACT, "--dtype", "float32")),
    "train": Verb("extracted", TRAIN),
    "run on stored features": Verb("extracted", ("run", "many.yaml")),
    "promote": Verb(
        "promoted",
        ("promote", "logistic", "--unfreeze", "conv_a", "--epochs", "1", "-o", "model.keras"),
    ),
    "scan": Verb("changed", ("scan", "photos")),
    "gc": Verb("littered", ("gc", "--yes")),
    "repair": Verb("damaged", ("repair",)),
    "run": Verb("fresh", ("run", "pipeline.yaml")),
}


class Bench:
    """A place where commands run, always of the same path, and states to begin from."""

    def __init__(
        self, commands: Commands, root: Path, *, each: int, size: int, channels: int
    ) -> None:
        self.commands, self.root = commands, root
        self.place = root / "place"
        self._network = {"size": size, "channels": channels}
        self._each = each

    def start(self, *command: str, **options: Any) -> Running:
        return self.commands.start(self.place, *command, **options, **self._environment())

    def run(self, *command: str, **options: Any) -> Result:
        return self.start(*command, **options).wait()

    def done(self, *command: str) -> None:
        """Run a command that must succeed."""
        result = self.run(*command)
        assert result.status == 0, result

    def here(self, *command: str) -> None:
        """The same in this process, which has loaded TensorFlow already."""
        with contextlib.chdir(self.place), pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment().items():
                patch.setenv(name, str(value))
            patch.setattr(tempfile, "tempdir", None)
            result = featurestore(*command)
        assert result.status == 0, result

    def _environment(self) -> dict[str, Path]:
        return {"TMPDIR": self.place / "tmp", "FEATURESTORE_CACHE": self.place / "cache"}

    # States

    def put(self, state: str) -> None:
        """Make the place as it is in a state."""
        kept = self.root / state
        if not kept.is_dir():
            getattr(self, f"_{state}")()
            shutil.copytree(self.place, kept)
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(kept, self.place)

    def _fresh(self) -> None:
        take_photos(self.place / "photos", self._each)
        build_network(self.place / "tiny.keras", **self._network)
        (self.place / "many.yaml").write_text(yaml.safe_dump(MANY))
        (self.place / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE))
        (self.place / "tmp").mkdir()

    def _extracted(self) -> None:
        self.put("fresh")
        self.done(*EXTRACT)

    def _promoted(self) -> None:
        self.put("extracted")
        self.done(*TRAIN)
        self.done("promote", "logistic", "-o", "model.keras")

    def _changed(self) -> None:
        self.put("promoted")
        red, blue = self.place / "photos" / "red", self.place / "photos" / "blue"
        for number in range(3):
            (red / f"{number:02}.png").rename(blue / f"was-red-{number}.png")
        shutil.copy(self.place / "tiny.keras", self.place / "photos" / "blue" / "no-image.png")

    def _littered(self) -> None:
        self.put("extracted")
        (self.place / "photos" / "red" / "00.png").unlink()
        self.done(*EXTRACT)
        self.done(*TRAIN)
        store = self.place / "store"
        (stem,) = store.glob("heads/*/model.*.skops")
        lost = store / "heads" / "logistic-0123456789ab"
        lost.mkdir()
        shutil.copy(stem, lost)
        for whole in (
            *store.glob("datasets/photos/*"),
            *store.glob("heads/*/head.json"),
            *store.glob("features/*/features/c.0.*"),
        ):
            whole.with_name(f"{whole.name}.{'0123456789abcdef' * 2}.partial").write_bytes(b"half")

    def _damaged(self) -> None:
        self.put("extracted")
        for pattern in ("conv_a*/features/c.*", "pool_a*/features/c.*", "pool_a*/sample/c.*"):
            files = sorted(self.place.glob(f"store/features/tiny@{pattern}"))
            for each in files[:: max(1, len(files) // 3)]:
                flip(each)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
