"""Commands on a real terminal: what is drawn, and what Ctrl-C leaves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Place
from tests.toys import build_network, featurestore, take_photos

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

BAR = re.compile(r"extract ━.* +(\d+)/600 [\d.,]+ img/s +\d:\d\d:\d\d")


def on_terminal(
    *args: str,
    columns: int = 80,
    see: Callable[[str], bytes | None] = lambda text: None,
    **environment: str,
) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its status and all that it wrote there.

    ``see`` is shown what is on the terminal so far, and may answer with what is typed.
    """
    # The width of the terminal that the tests run on is not that of this one.
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        program = "from featurestore.cli import main; main()"
        os.execve(
            sys.executable,
            [sys.executable, "-c", program, *args],
            {**inherited, "TERM": "xterm-256color", **environment},
        )
    text, typed, end = "", None, time.monotonic() + 120
    while time.monotonic() < end:
        try:
            text += os.read(terminal, 65536).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            break
        if typed is None and (typed := see(text)) is not None:
            os.write(terminal, typed)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", text))]


@pytest.mark.reliability
def test_ctrl_c_stops_at_once_leaves_blocks_and_says_what_resumes(tmp_path: Path) -> None:
    take_photos(tmp_path / "photos", 200)
    build_network(tmp_path / "wide.keras", size=128, channels=64)
    store = tmp_path / "store"
    command = ["extract", str(tmp_path / "photos"), "--model", str(tmp_path / "wide.keras")]
    command += ["--layer", "conv_b", "--batch-size", "1", "--store", str(store)]

    def interrupt(text: str) -> bytes | None:
        done = [int(bar[1]) for line in lines_of(text) if (bar := BAR.fullmatch(line))]
        return b"\x03" if done and done[-1] > 256 else None

    status, text = on_terminal(*command, see=interrupt)

    assert status == 130
    assert "Traceback" not in text
    assert "featurestore extract" in "".join(lines_of(text)[-4:])
    bars = [line for line in lines_of(text) if BAR.fullmatch(line)]
    assert bars
    assert all(len(line) <= 80 for line in bars)
    assert not list(tmp_path.rglob("*.partial"))

    features = featurestore(*command, "--json").json["features"]["conv_b"]
    assert features["rows_reused"] in (256, 512)  # whole blocks that were written
    assert features["rows_computed"] == 600 - features["rows_reused"]


def test_tables_fit_a_narrow_terminal(place: Place) -> None:
    status, text = on_terminal("ls", columns=60)

    lines = [line for line in lines_of(text) if line]
    assert status == 0
    assert all(len(line) <= 60 for line in lines)
    assert [line for line in lines if line.startswith("  tiny/conv_a-")]


def test_a_bar_goes_away_when_all_is_done(place: Place) -> None:
    status, text = on_terminal("verify")

    assert status == 0
    checked = "2 feature arrays, 1 data set, 2 heads checked"
    assert [line for line in lines_of(text) if line][-1] == checked
    assert text.rstrip().endswith(checked)


@pytest.mark.reliability
def test_a_terminal_that_cannot_redraw_gets_plain_lines(place: Place) -> None:
    status, text = on_terminal("verify", TERM="dumb")

    assert status == 0
    assert text == "2 feature arrays, 1 data set, 2 heads checked\r\n"
