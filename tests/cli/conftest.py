"""A folder as a user has it: photographs, a model file, a store with features and heads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.toys import build_network, featurestore, take_photos


@dataclass(frozen=True)
class Place:
    """Where things are; the current folder of the test, unless shared."""

    folder: Path

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def store(self) -> Path:
        return self.folder / "store"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FEATURESTORE_STORE", raising=False)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything made once; tests get copies."""
    folder = tmp_path_factory.mktemp("made")
    take_photos(folder / "photos")
    build_network(folder / "tiny.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        extract = ["extract", "photos", "--model", "tiny.keras", "--val", "0.3"]
        for command in (
            [*extract, "--layer", "conv_a", "--layer", "conv_b:avg"],
            ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head", "logistic"],
            ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head", "knn"],
        ):
            result = featurestore(*command)
            assert result.status == 0, result.err
    return folder


@pytest.fixture(scope="session")
def promoted(made: Path) -> Path:
    """``flowers.keras``, beside what was made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        result = featurestore("promote", "logistic", "-o", "flowers.keras")
    assert result.status == 0, result.err
    return made / "flowers.keras"


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of what was made, in which the test stands; its data sets are at the same places."""
    for each in made.iterdir():
        if each.is_dir():
            shutil.copytree(each, tmp_path / each.name)
        else:
            shutil.copy2(each, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)
