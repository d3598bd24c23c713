"""What every benchmark's command line has in common: measure all, and only then print and write."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .measure import CheckFailed, Result, machine, save

Suite = Callable[[int, torch.device], list[Result]]  # repetitions, device


def arguments(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m octavo.{prog}", description=description)
    parser.add_argument("--repetitions", type=int, default=60, metavar="N", help="of each timed call (default: 60)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    today = datetime.date.today().isoformat()
    parser.add_argument("--date", default=today, help="the day that the file names (default: today)")
    return parser


def measure(suite: Suite, path: Path, args: argparse.Namespace) -> int:
    """Runs a suite on one thread, prints its figures and writes them to `path`. A red check prints its sentence only.

    Returns the exit code.
    """
    torch.set_num_threads(1)
    facts = machine(args.date)  # before the suite: the load of others, not ours
    try:
        results = suite(args.repetitions, torch.device(args.device))
    except CheckFailed as error:
        print(f"{path.stem}: {error}", file=sys.stderr)
        return 1
    save(path, facts, results)
    print(text(results))
    print(f"written to {path}")
    return 0


def text(results: Sequence[Result]) -> str:
    """One line per result: goal, what, case, value, what was asked, and the 10th percentiles and medians behind it."""
    return "\n".join(_line(result) for result in results)


def _line(result: Result) -> str:
    asked = ""
    if result.asked is not None:
        asked = (
            f"  ({'met' if result.met else 'MISSED'}: {'at most' if result.at_most else 'at least'} {result.asked:g})"
        )
    times = "".join(f"  {name} {t.p10:.4g} ms, median {t.median:.4g}" for name, t in result.timings.items())
    return f"{result.goal or '-':8} {result.what}, {result.case}: {result.value:.3g} {result.unit}{asked}{times}"


def main(suite: Suite, prog: str, description: str, argv: list[str] | None = None) -> int:
    """The command line of one suite alone."""
    parser = arguments(prog, description)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the figures go")
    args = parser.parse_args(argv)
    return measure(suite, args.json, args)
