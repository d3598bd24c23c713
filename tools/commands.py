"""The sub-commands of `octavo`, each a file of this folder with `add_arguments(parser)` and `run(args) -> int`.

Exit codes: 0 done, 2 a sentence on stderr says what is wrong, 3 a quantized file failed the quality gate, 130 Ctrl-C,
143 SIGTERM, 141 nobody reads our output.
The sub-commands import torch and the runtime only when they run, so that `octavo --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from . import doctor, inspect, quantize, say, voices

COMMANDS = {"say": say, "voices": voices, "inspect": inspect, "quantize": quantize, "doctor": doctor}


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
    _mend_streams()
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has printed the help, the version or what is wrong with the arguments
        return leaving.code if isinstance(leaving.code, int) else 0
    try:
        with _ended_by_signals():
            code = args.run(args)
        sys.stdout.flush()
        return code
    except _Ended as signalled:
        return 128 + signalled.args[0]
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


class _Ended(BaseException):
    """A signal asked us to end: what was begun is cleaned up on the way out, as after Ctrl-C."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal, a service that stops) become `_Ended`, in the main thread."""

    def end(number: int, _frame: object) -> None:
        raise _Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    before = {kind: signal.signal(kind, end) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _mend_streams() -> None:
    """A stream that was closed (cron, `>&-`) is None in Python: reading it finds nothing, writing goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # for as long as the process lives


def _complain(sentence: str) -> int:
    print(f"octavo: {sentence}", file=sys.stderr)
    return 2
