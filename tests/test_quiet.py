from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOAD = "import featurestore as fs; fs.Backbone.pixels(); import tensorflow as tf; tf.constant(1)"


@pytest.mark.reliability
@pytest.mark.parametrize(("level", "quiet"), [(None, True), ("0", False)])
def test_tensorflow_starts_quietly_unless_the_user_asks(level: str | None, quiet: bool) -> None:
    environment = {name: each for name, each in os.environ.items() if "TF_CPP" not in name}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "",
        **({} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}),
    }
    # What other programs that the script starts would see.
    script = f"{LOAD}; import os; print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == f"{level}\n"
    assert (not done.stderr) == quiet


@pytest.mark.reliability
def test_scikit_learn_is_imported_when_it_is_used() -> None:
    script = (
        "import sys; from featurestore.quiet import load_tensorflow; load_tensorflow();"
        "print('sklearn' in sys.modules); import keras; keras.wrappers.SKLearnClassifier;"
        "import keras.wrappers as again;"
        "print('sklearn' in sys.modules, again is keras.wrappers, type(again).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True", "True", "module"]
