"""The command `octavo`. Each sub-command is a file of this folder with `add_arguments(parser)` and `run(args) -> int`.

Exit codes: 0 done, 2 a sentence on stderr says what is wrong, 130 Ctrl-C, 141 the reader of our output went away.
The sub-commands import torch and the runtime only when they run, so that `octavo --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys

from . import doctor, inspect, say, voices

COMMANDS = {"say": say, "voices": voices, "inspect": inspect, "doctor": doctor}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octavo", description="Text in, speech out: a small, fast runtime for Higgs TTS."
    )
    parser.add_argument("--version", action="version", version=f"octavo {importlib.metadata.version('octavo')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary, _, details = (module.__doc__ or "").partition("\n\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=summary + "\n\n" + details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code. Errors of ours become a sentence; anything else is a bug and raises."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has printed the help, the version or what is wrong with the arguments
        return leaving.code if isinstance(leaving.code, int) else 0
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit complains again
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}.")
    except Exception as error:
        from octavo.runtime.errors import OctavoError

        if not isinstance(error, OctavoError):
            raise
        return _complain(str(error))


def _complain(sentence: str) -> int:
    print(f"octavo: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
