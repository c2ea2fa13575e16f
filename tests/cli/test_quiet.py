from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, warnings
from featurestore.cli.quiet import quiet_libraries
quiet_libraries()
quiet_libraries()
from featurestore.errors import FeatureStoreWarning
warnings.warn("a library's own", UserWarning)
warnings.warn("soon gone", DeprecationWarning)
warnings.warn("ours, in two\\n lines", FeatureStoreWarning)
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
