"""Writes the measured figures into the README, so that it says what the JSON files under bench/results say.

    python -m octavo.bench.tables [--check]

The table stands between `<!-- table: measured -->` and `<!-- /table -->`; everything else stays as it is. With --check
nothing is written, and the exit code is 1 when text and files disagree.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import Result, load

BEGIN, END = "<!-- table: measured -->", "<!-- /table -->"


def render(folder: Path) -> str:
    """Markdown: for each machine a sentence about it and a table of the results that have a goal.

    folder: holds <machine>/<suite>.json.
    """
    groups: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        facts, results = load(path)
        groups.setdefault(_sentence(facts), []).extend(result for result in results if result.goal)
    return "\n\n".join(f"{sentence}\n\n{_table(results)}" for sentence, results in groups.items())


def rewrite(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises ValueError unless they are there, once and in order."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in inside + after or END in before + after:
        raise ValueError(f"the text needs {BEGIN} and after it {END}, each once")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}" if table else f"{before}{BEGIN}\n{END}{after}"


def _sentence(facts: Mapping[str, Any]) -> str:
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']:.0f} GB"
    where = f"{facts['gpu']} ({where})" if facts["gpu"] else where
    versions = f"{facts['os']}, Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}"
    threads = "one thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return f"Measured {facts['date']} on {where}; {versions}; {threads}, by turns, 10th percentile."


def _table(results: Sequence[Result]) -> str:
    header = ["| | what | octavo | baseline | result | asked |", "|---|---|---|---|---|---|"]
    return "\n".join(header + [_row(result) for result in sorted(results, key=_place)])


def _place(result: Result) -> tuple[str, int]:
    """C3 before C10, and what has no number behind them."""
    number = re.fullmatch(r"([A-Z])(\d+)", result.goal)
    return (number[1], int(number[2])) if number else ("~" + result.goal, 0)


def _row(result: Result) -> str:
    times = [f"{result.timings[side].p10:.3g} ms" if side in result.timings else "" for side in ("octavo", "baseline")]
    asked = "" if result.asked is None else f"{'at most' if result.at_most else 'at least'} {result.asked:g}"
    missed = "" if result.met is not False else ": missed"
    value = f"{result.value:.3g} {result.unit}"
    cells = [result.goal, f"{result.what}: {result.case}", *times, value, asked + missed]
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.bench.tables", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when text and files disagree")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        text = args.readme.read_text(encoding="utf-8")
        wanted = rewrite(text, render(args.results))
    except (OSError, ValueError) as error:
        print(f"tables: {args.readme}: {error}", file=sys.stderr)
        return 1
    if args.check and text != wanted:
        print(f"tables: {args.readme} does not say what {args.results} says. `make tables` writes it.", file=sys.stderr)
        return 1
    if not args.check:
        args.readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
