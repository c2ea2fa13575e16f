"""Two benches for all that kills and interrupts, and a store for all that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.store import blocks
from tests.reliability.acts import Made, make
from tests.reliability.bench import Bench
from tests.reliability.processes import SMALL_BLOCK, Commands

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what injects faults, unless it stands for a promise or runs by another mark."""
    for item in items:
        others = (item.get_closest_marker(name) for name in ("promise", "soak", "assets"))
        if FOLDER in item.path.parents and not any(others):
            item.add_marker("reliability")


@pytest.fixture(scope="package", autouse=True)
def small_blocks() -> Iterator[None]:
    """Several blocks of few rows, as a large data set has them; so do the commands' processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", SMALL_BLOCK)
        yield


@pytest.fixture(scope="package")
def narrow(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One block for each layer."""
    return Bench(commands, tmp_path_factory.mktemp("narrow"), each=12, size=16, channels=8)


@pytest.fixture(scope="package")
def wide(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Several blocks for each layer: 8 and 32 rows in a block."""
    return Bench(commands, tmp_path_factory.mktemp("wide"), each=12, size=64, channels=64)


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Photographs, a network, features and a head, made in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FEATURESTORE_STORE", raising=False)
        yield make(tmp_path_factory.mktemp("made"))
