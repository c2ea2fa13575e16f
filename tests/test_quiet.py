from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOAD = (
    "import featurestore as fs; fs.Backbone.open('pixels'); import tensorflow as tf; tf.constant(1)"
)


@pytest.mark.reliability
@pytest.mark.parametrize(("level", "quiet"), [(None, True), ("0", False)])
def test_tensorflow_starts_quietly_unless_the_user_asks(level: str | None, quiet: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if "TF_CPP" not in name}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "",
        **({} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, env=environment
    )
    assert not done.stdout
    assert (not done.stderr) == quiet
