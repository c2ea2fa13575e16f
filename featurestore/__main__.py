"""The program: ``featurestore``, or ``python -m featurestore``."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; Ctrl-C while it loads, or while it exits, prints no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from featurestore.cli import main as run

    run()


if __name__ == "__main__":
    main()
