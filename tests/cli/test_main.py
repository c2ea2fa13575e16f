"""The command line as a whole: statuses, one line for an error, help that is quick and true."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import click
import pytest

import featurestore.cli as cli_package
from featurestore.cli import cli
from featurestore.errors import FeatureStoreError, SpecError
from tests.cli.conftest import Place
from tests.toys import featurestore

COMMANDS = cli.list_commands(click.Context(cli))
HEAVY = ("tensorflow", "keras", "sklearn", "pandas", "dask", "xarray", "rich.progress")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> Any:
    """Run a command whose work raises; what main makes of errors does not depend on the work."""

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(cli_package.cli, "main", fail)
    return featurestore(*(args or ("ls", "--store", "my store")))


def test_the_verbs_are_those_of_the_design() -> None:
    assert " ".join(COMMANDS) == (
        "layers scan augment extract ls show verify repair rm gc rank train refit heads tag "
        "promote evaluate predict run doctor"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_explains_its_options(name: str) -> None:
    result = featurestore(name, "--help")
    command = cli.get_command(click.Context(cli), name)

    assert result.status == 0
    assert f"Example:\n    featurestore {name}" in result.out
    assert re.search(rf"^Usage: featurestore {name} ", result.out)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.metavar or option.is_flag or isinstance(option.type, click.Choice)


def test_help_lines_are_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = featurestore("--help").out.partition("Commands:\n")[2].splitlines()

    assert [line.split()[0] for line in lines] == COMMANDS
    assert not any("..." in line for line in lines)


def test_commands_that_only_read_load_no_tensorflow(place: Place) -> None:
    program = f"""
import sys
from featurestore.cli import main
for arguments in (["--help"], ["--version"], ["extract", "--help"], ["ls"], ["heads"],
                  ["show", "conv_a"]):
    try:
        main(arguments)
    except SystemExit as leave:
        print(arguments, leave.code, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    ends = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(ends) == 6
    assert all(line.endswith(" 0 []") for line in ends), ends


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, featurestore, featurestore.cli\n"
        f"print([name for name in {(*HEAVY, 'numpy', 'rich')} if name in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_an_unknown_command_is_a_usage_error() -> None:
    result = featurestore("extrct")

    assert result.status == 2
    assert "No such command 'extrct'" in result.err


def test_no_command_shows_the_help() -> None:
    result = featurestore()

    assert result.status == 2
    assert "Commands:" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--bogus"],
        ["train", "photos"],
        ["predict", "model.keras"],
        ["extract", "photos", "--model", "m", "--layer", "l", "--dtype", "int8"],
        ["extract", "photos", "--model", "m", "--layer", "l", "--batch-size", "0"],
        ["scan", "photos", "--val", "1.5"],
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_expected(arguments: list[str]) -> None:
    result = featurestore(*arguments)

    assert result.status == 2
    assert result.out == ""
    assert "Error: " in result.err


def test_a_foreseen_error_is_one_line_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result = raising(monkeypatch, FeatureStoreError("in two\n  lines, \x1b[31mred\x07"))

    assert result.error == r"in two lines, \x1b[31mred\x07"
    assert result.out == ""


def test_each_mistake_in_a_file_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = raising(monkeypatch, SpecError("a.yaml:1: this\na.yaml:2: that"))

    assert (result.status, result.err) == (
        1,
        "error: a.yaml:1: this\nerror: a.yaml:2: that\n",
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_prints_the_command_that_resumes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    result = raising(monkeypatch, error, "extract", "my photos")

    assert result.status == 130
    assert result.err.endswith("this resumes: featurestore extract 'my photos'\n")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("args", [["predict", "m.keras", "a.png"], ["extract", "a", "--dry-run"]])
def test_what_starts_over_is_not_said_to_resume(
    monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    said = raising(monkeypatch, KeyboardInterrupt(), *args).err
    assert said == f"interrupted; this starts over: featurestore {' '.join(args)}\n"


def test_the_help_shows_shared_options_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text = featurestore("train", "--help").out
    own, _, variant = text.partition("\nVariant options:\n")
    assert "--head H" in own
    assert "--resize" in variant
    assert "--resize" not in own


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error", "/s/x"), "Input/output error (/s/x)"),
        (OSError(errno.ENOENT, "No such file or directory"), "(the current folder)"),
    ],
)
def test_an_operating_system_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str
) -> None:
    assert expected in raising(monkeypatch, error).error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("without a number")])
def test_unforeseen_errors_are_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)):
        raising(monkeypatch, error)


def test_the_current_folder_was_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = place.folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    for command in (["ls"], ["scan", "photos"], ["run", "a.yaml"]):
        assert featurestore(*command).error
    assert featurestore("ls", "--store", place.store).status == 0


def test_a_closed_pipe_is_not_an_error(place: Place) -> None:
    pipe = f"{sys.executable} -c 'from featurestore.cli import main; main()' show conv_a | head -1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)

    assert done.stdout.startswith("key: ")
    assert done.stderr == ""


def test_names_outside_the_encoding_are_escaped(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert featurestore("scan", "photos", "--name", "日本").status == 0

    latin = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    with pytest.raises(SystemExit, match="0"):
        cli_package.main(["ls"])

    latin.seek(0)
    assert r"\u65e5\u672c" in latin.read()


def test_the_store_comes_from_the_environment(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEATURESTORE_STORE", str(place.store))
    monkeypatch.chdir(place.photos)

    assert "conv_a" in featurestore("ls").out
    assert featurestore("ls", "--store", "none").status == 1
    assert "none" not in os.listdir()
