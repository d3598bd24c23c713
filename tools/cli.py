"""The command `octavo`: what is in `commands`, which takes a moment to import, and a Ctrl-C in that moment."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        from . import commands

        return commands.main(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
