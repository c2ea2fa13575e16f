"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
from typing import Any

import click

from featurestore.cli.quiet import quiet_tensorflow
from featurestore.errors import FeatureStoreError

# command -> module of featurestore.cli that defines it: `--help` imports none but the one asked.
_COMMANDS = {
    "layers": "backbones",
    "scan": "data",
    "extract": "data",
    "ls": "stored",
    "show": "stored",
    "verify": "stored",
    "repair": "stored",
    "gc": "stored",
    "rank": "heads",
    "train": "heads",
    "sweep": "heads",
    "heads": "heads",
    "promote": "models",
    "evaluate": "models",
    "predict": "models",
    "run": "run",
}


class _Commands(click.Group):
    """Commands in the order of the work, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"featurestore.cli.{_COMMANDS[cmd_name]}")
        return getattr(module, f"{cmd_name}_command")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from featurestore.errors import nearest

        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"no command {args[0]!r}; {nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)


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
    """Run the command line and exit: 0 done, 1 a foreseen error, 2 usage, 130 interrupted."""
    quiet_tensorflow()
    sys.exit(_status(sys.argv[1:] if args is None else args))


def _status(args: list[str]) -> int:
    try:
        result: Any = cli.main(args, prog_name="featurestore", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        command = shlex.join(["featurestore", *args])
        click.echo(f"interrupted; what is committed is kept, and this resumes: {command}", err=True)
        return 130
    except FeatureStoreError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except BrokenPipeError:
        # The reader of a pipe went away: nothing more can be said to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        click.echo(f"error: {_os_error(error)}", err=True)
        return 1


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    text = f"{error.strerror}{where}"
    if error.errno == errno.ENOSPC:
        return f"{text}; free some space and run the same command again: it resumes"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}; make it writable, or name another store with `--store`"
    return text
