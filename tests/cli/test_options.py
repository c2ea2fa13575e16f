"""Options agree with what they are passed to."""

from __future__ import annotations

import click
import pytest

from featurestore.cli import cli
from featurestore.extraction.planning import DTYPES


@pytest.mark.parametrize(
    ("command", "option", "allowed"),
    [
        ("extract", "dtype", DTYPES),
    ],
)
def test_choices_are_those_of_the_library(
    command: str, option: str, allowed: tuple[str, ...]
) -> None:
    found = cli.get_command(click.Context(cli), command)

    assert found is not None
    choice = next(each for each in found.params if each.name == option)
    assert isinstance(choice.type, click.Choice)
    assert tuple(choice.type.choices) == allowed
