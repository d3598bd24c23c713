"""The report of gpu_check as a page to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = ("goal", "name", "case", "ms", "GB", "of copy", "asked")
_KNOWN = {"goal", "name", "case", "ms", "bytes", "of_copy", "asked", "at_most", "met"}


def text(report: Mapping[str, Any]) -> str:
    facts = [f"{name} {value}" for name, value in report["machine"].items() if value is not None]
    return "\n\n".join([", ".join(facts), *(_step(step) for step in report["steps"])]) + "\n"


def _step(step: Mapping[str, Any]) -> str:
    counts = Counter(check["outcome"] for check in step["checks"])
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "not run") if counts[outcome])
    lines = [f"{step['part']} {step['what']}: {said or 'nothing'} ({step['ended']}, {step['seconds']} s)"]
    if "copy_gb_s" in step:
        lines[0] += f"; copy {_short(step['copy_gb_s'])} GB/s"
    for outcome in ("failed", "not run"):
        chosen = [check for check in step["checks"] if check["outcome"] == outcome]
        whys = Counter(check.get("why", "") for check in chosen)
        for why, count in whys.items():
            names = [check["name"] for check in chosen if check.get("why", "") == why]
            lines.append(f"  {outcome}: {names[0]}{f' and {count - 1} more' if count > 1 else ''}: {why}")
    return "\n".join(lines + _figures(step["figures"]))


def _figures(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    if not figures:
        return []
    rows: list[Sequence[str]] = [(*_COLUMNS, "")]
    for figure in figures:
        rest = "  ".join(f"{name} {_short(value)}" for name, value in figure.items() if name not in _KNOWN)
        asked = f"{'at most ' if figure.get('at_most') else ''}{_short(figure['asked'])}" if "asked" in figure else ""
        values = [figure.get(name, "") for name in ("goal", "name", "case", "ms")]
        values += [figure["bytes"] / 1e9 if "bytes" in figure else "", figure.get("of_copy", "")]
        values += [asked if figure.get("met", True) else f"{asked} MISSED", rest]
        rows.append([_short(value) for value in values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
