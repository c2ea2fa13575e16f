"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

import importlib
import sys
from io import TextIOWrapper
from typing import Any

import click

from featurestore.cli.interrupts import Interrupts
from featurestore.cli.output import flags, quiet_libraries, say
from featurestore.errors import FeatureStoreError, SpecError

# command -> module of featurestore.cli that defines it, and its line in `featurestore --help`,
# which imports none of these modules.
_COMMANDS = {
    "layers": ("backbones", "List the layers of a backbone, and what a cut there costs."),
    "scan": ("data", "Record the samples, labels and splits of a folder or table."),
    "augment": ("data", "Record a data set with random views of its training images."),
    "extract": ("data", "Compute features at the given layers; reuse what is stored."),
    "ls": ("stored", "List the stored features."),
    "show": ("stored", "Show one head, data set or feature array, and its origin."),
    "verify": ("stored", "Verify the checksums of everything stored."),
    "repair": ("stored", "Restore what is damaged, from the images."),
    "rm": ("stored", "Remove data sets, heads or features."),
    "gc": ("stored", "Remove everything that no data set or head refers to."),
    "rank": ("heads", "Rank the stored layers, before any head is trained."),
    "train": ("heads", "Train one head on stored features."),
    "refit": ("heads", "Fit stale heads again, on the present samples."),
    "heads": ("heads", "List the trained heads, best first."),
    "tag": ("heads", "Label or tag a head, or write a note on it."),
    "promote": ("models", "Fuse a head and its backbone into one Keras model."),
    "evaluate": ("models", "Evaluate a promoted model on labelled images."),
    "predict": ("models", "Predict images with a promoted model."),
    "run": ("run", "Run a pipeline file: many heads, from images to a promoted model."),
    "doctor": ("backbones", "Measure this machine, and find the bottleneck of an extraction."),
}


class _Commands(click.Group):
    """Commands in the order of the work, each imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"featurestore.cli.{_COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="featurestore")
def cli() -> None:
    """Extract the features of frozen Keras backbones once, train heads on them, promote the best.

    \b
    Example:
      featurestore extract photos/ --model vgg16 --layer block5_pool:avg
      featurestore train photos --model vgg16 --layer block5_pool:avg --head logistic
      featurestore heads photos
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit.

    The status is 0 for done, 1 for a foreseen error, 2 for wrong usage, 130 or 143 for interrupted.

    Parameters
    ----------
    args : list of str, optional
        By default those of the process.
    """
    sys.exit(_run(sys.argv[1:] if args is None else args))


def _run(args: list[str]) -> int:
    with Interrupts() as interrupts:
        try:
            quiet_libraries()
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, TextIOWrapper):
                    # Escape names that the encoding of the terminal cannot show.
                    stream.reconfigure(errors="backslashreplace")
            result: Any = cli.main(args, prog_name="featurestore", standalone_mode=False)
            return result if isinstance(result, int) else 0
        except BaseException as error:
            # Libraries may turn KeyboardInterrupt into another error.
            if interrupts.received or isinstance(error, click.Abort | KeyboardInterrupt):
                return interrupts.report(args)
            return _failed(error)
        finally:
            flags.clear()


def _failed(error: BaseException) -> int:
    """Print a foreseen error and return the exit status; raise any other."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, SpecError):
        # A file with several mistakes has a line for each.
        lines = str(error).splitlines()
    elif isinstance(error, FeatureStoreError):
        lines = [" ".join(str(error).split())]
    elif isinstance(error, OSError) and error.errno is not None:
        # Without a file name it comes from os.getcwd.
        lines = [f"{error.strerror} ({error.filename or 'the current folder'})"]
    else:
        raise error
    for line in lines:
        say(f"error: {line}", err=True)
    return 1
