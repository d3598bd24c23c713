"""What the gate measured, for people: a Markdown page, the same as JSON, and a plot; and a table of several files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.errors import CheckpointError, RequestError
from octavo.runtime.files import write_atomic
from octavo.runtime.hub import resolve
from octavo.runtime.verify import provenance

from .scores import FreeRuns, Scores

_COLUMNS = ("KL, worst", "top-1, first", "top-1, worst", "EOC shift", "EOC log-odds", "hidden", "sound", "run-ons")
_SUFFIXES = (".md", ".json", ".png")
_NOT_FACTS = ("scores", "failures", "relative_l2")  # which have a place of their own on the page


def require_plot() -> None:
    """Raises RequestError where there is no matplotlib: better before the work than behind it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError(
            "A report has a plot, which needs matplotlib. Install it with `pip install octavo[report]`, or leave out "
            "--report."
        )


def files(path: str | os.PathLike) -> list[Path]:
    """path.md, path.json and path.png, whichever of these suffixes `path` has."""
    stem = Path(path).with_suffix("") if Path(path).suffix in _SUFFIXES else Path(path)
    return [stem.with_name(stem.name + suffix) for suffix in _SUFFIXES]


def write(path: str | os.PathLike, scores: Scores, facts: Mapping[str, Any]) -> list[Path]:
    """Writes and returns the three of `files`.

    facts: all else that is known of the file, as its provenance holds it: `failures` of the gate, `relative_l2` of its
    tensors, and strings, numbers or dicts of such under names that the page shows. Raises RequestError when a file
    cannot be written, or without matplotlib.
    """
    require_plot()
    from .plot import draw

    page, data, picture = files(path)
    content = {**facts, "scores": scores.to_dict()}
    write_atomic(data, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(picture, draw(scores))
    write_atomic(page, _page(scores, facts, picture.name).encode(errors="replace"))
    return [page, data, picture]


def table(models: Sequence[str | os.PathLike]) -> str:
    """Markdown: a line for each folder, .gguf file or model id in the local cache, with the scores that it holds.

    Raises CheckpointError for what is no checkpoint, or damaged.
    """
    lines = []
    for model in models:
        checkpoint = Checkpoint.open(resolve(os.fspath(model)))
        made = provenance(checkpoint)
        try:
            scores = Scores.from_dict(made["scores"]) if made.get("scores") else None
        except ValueError as error:
            raise CheckpointError(f"{model} cannot be compared. {error} Make it again.") from error
        gate = "" if scores is None else "fails" if made.get("failures") else "passes"
        lines.append(
            (os.fspath(model), str(made.get("type", "")), f"{checkpoint.nbytes / 1e9:.2f}", gate, *_line(scores))
        )
    return _table(("model", "type", "GB", "gate", *_COLUMNS), lines)


def _line(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["no scores", *[""] * (len(_COLUMNS) - 1)]
    figures = (max(scores.kl_mean), scores.top1[0], min(scores.top1), scores.eoc_shift, scores.eoc_log_odds,
               scores.hidden[-1], scores.waveform)  # fmt: skip
    kinds = (".2g", ".1%", ".1%", "+.4f", "+.2f", ".3f", ".3f")
    free = scores.free
    runs = f"{free.run_ons} of {free.count} (source {free.run_ons_source})" if free else ""
    return [*(_number(figure, kind) for figure, kind in zip(figures, kinds, strict=True)), runs]


def _page(scores: Scores, facts: Mapping[str, Any], picture: str) -> str:
    parts = ["# What quantizing cost"]
    if "failures" in facts:
        parts.append("It **fails** the quality gate:" if facts["failures"] else "It **passes** the quality gate.")
        parts.append("\n".join(f"- {failure}" for failure in facts["failures"]))
    parts.append(_table(("fact", "value"), list(_flat(facts))))
    parts.append(
        f"Quantized against source, {scores.utterances} utterances of {scores.rows} rows that the source once said, "
        "the same codes fed to both. KL in nats; positions that the delay pattern decides are left out."
    )
    rows = [
        (str(c), f"{mean:.2g}", f"{p99:.2g}", f"{top1:.1%}", f"{top50:.1%}")
        for c, (mean, p99, top1, top50) in enumerate(
            zip(scores.kl_mean, scores.kl_p99, scores.top1, scores.top50, strict=True)
        )
    ]
    parts.append(
        "The copy agrees on a code (top-1) if its likeliest is one of those that the source's 16-bit logits put first."
    )
    parts.append(_table(("codebook", "KL mean", "KL 99th percentile", "top-1 agrees", "top-50 overlaps"), rows))
    parts.append(_table(("what", "value"), _others(scores)))
    if scores.free:
        parts.append(_table(("each going its own way, same seeds", "source", "quantized"), _free(scores.free)))
    parts.append(f"![KL, agreement, hidden states and end of speech]({picture})")
    return "\n\n".join(part for part in parts if part) + "\n"


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts as lines of a table; what one holds by name is named behind it."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and name not in _NOT_FACTS:
            yield from ((f"{name}: {inner}", str(of)) for inner, of in value.items())
        elif name not in _NOT_FACTS:
            yield name, str(value)
    if errors := facts.get("relative_l2"):
        worst = max(errors, key=errors.__getitem__)
        yield "relative L2 of the weights", f"mean {sum(errors.values()) / len(errors):.4f}"
        yield "the worst of them", f"{worst}, {errors[worst]:.4f}"


def _others(scores: Scores) -> list[tuple[str, str]]:
    return [
        ("shift of the probability of the end of speech, all rows", _number(scores.eoc_shift, "+.5f")),
        ("the same, in the last ten rows before the end", _number(scores.eoc_shift_last, "+.5f")),
        ("shift of its log-odds, where it is open", _number(scores.eoc_log_odds, "+.3f")),
        ("relative L2 of the hidden states behind the last layer", _number(scores.hidden[-1], ".4f")),
        ("relative L2 of the sound of the likeliest codes", _number(scores.waveform, ".4f")),
    ]


def _free(free: FreeRuns) -> list[tuple[str, str, str]]:
    return [
        ("utterances", str(free.count), str(free.count)),
        ("run on", str(free.run_ons_source), str(free.run_ons)),
        ("stop before half of the other's length", str(free.early_source), str(free.early)),
        ("length, where both stopped", "1" if free.length_ratio else "", _number(free.length_ratio, ".3f")),
        ("silence at the end, s", f"{free.silence_source:.2f}", f"{free.silence:.2f}"),
    ]


def _number(value: float | None, kind: str) -> str:
    return "" if value is None else format(value, kind)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """No rows, no table. What a file says of itself may hold anything, but breaks neither the table nor a terminal."""
    cells = [["".join(_cell(character) for character in text) for text in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def _cell(character: str) -> str:
    return "\\|" if character == "|" else character if character.isprintable() else " "
