"""Where `token-broker` and `python -m broker` begin."""

import sys

from broker.system import early_signals


def main() -> None:
    """Run the command that the arguments name."""
    if "serve" in sys.argv[1:]:
        early_signals.hold_back()
    # Only now: to import the commands takes a while, and a signal may come at any moment.
    from broker.cli.commands import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
