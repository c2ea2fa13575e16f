"""What holds for all tests: their processes, the threads of each, and hypothesis."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.reliability.processes import Commands
    from tests.s3 import S3Server

# Workers that each take all cores slow each other down. TensorFlow reads this when it is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    _threads = str(max(1, (os.cpu_count() or 1) // workers))
    for _name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):
        os.environ.setdefault(_name, _threads)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # It looks through all modules that are loaded: seconds longer once TensorFlow is among them.
    import skops.io  # noqa: F401

# A deadline fails on a busy machine.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("default")


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Run real commands, each in a process of its own, at the price of a fork."""
    from tests.reliability.processes import Commands

    with Commands() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A server of S3 in a process of its own."""
    from tests.s3 import S3Server

    with S3Server() as server:
        yield server


def pytest_collection_finish() -> None:
    """Keep the garbage collector from going over TensorFlow's modules again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Use this process alone for one file, and with ``-s``: workers load TensorFlow each."""
    files = {argument.partition("::")[0] for argument in config.args}
    one_file = len(files) == 1 and files.pop().endswith(".py")
    return 0 if one_file or config.option.capture == "no" else None
