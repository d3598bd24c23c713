"""A 16-bit checkpoint into a small one: checked, written tensor by tensor, compared with its source, and only then
given its name."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.devices import pick_device, pick_dtype
from octavo.runtime.errors import RequestError
from octavo.runtime.files import AtomicFile, write_errors
from octavo.runtime.verify import HASHES, small_digests

from . import awq, imatrix
from . import gate as judge
from . import report as reports
from .calibration import calibration, is_slow, speak
from .encode import Encoded, encode, searched
from .formats.grouped import Grouped
from .output import Output
from .recipe import Recipe, recipe
from .rows import Drawn
from .scores import Scores
from .source import Source, as_text, check_finite, open_source
from .walk import Walk
from .writers import FolderWriter, GGUFFileWriter, Writer

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is, and how much there is in all


@dataclass(frozen=True)
class Result:
    """path: where the checkpoint is, under another name than asked for if it failed the gate; failures: why, in
    sentences; scores: None without the gate; relative_l2: of each quantized tensor; notes: sentences."""

    path: Path
    nbytes: int
    seconds: float
    scores: Scores | None
    failures: tuple[str, ...]
    relative_l2: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures


def quantize(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    format: str,
    type: str | None = None,
    group_size: int = 128,
    calib: str | os.PathLike | None = None,
    keep: Mapping[str, str] | None = None,
    report: str | os.PathLike | None = None,
    gate: bool = True,
    force: bool = False,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Writes a quantized copy of `source` (a folder, a .gguf file, or a model id in the local cache) to `out`.

    format: "awq", "int8", "fp8" or "nf4", for which `out` becomes a folder, or "gguf", one file. type: of GGUF, as
    "q8_0" or "q4_k_m" (default: q4_k_even). group_size: of AWQ. calib: "builtin", "none", or a text file with one
    sentence a line, which the model speaks for AWQ's search (default: builtin) or as importance for GGUF's types
    (default: none). keep: patterns of tensor names, or "text", "audio" and "codec", to types: {"text": "bf16"}.

    With `gate` the copy is loaded and compared with the source; if it fails, it is kept as `out` with `.failed` in its
    name. report: a Markdown file for the scores, with JSON and a plot beside it. The same arguments on the same device
    give the same file. Whatever goes wrong before the copy has its name, nothing is left behind; the report comes after
    that. Raises RequestError for what is wrong with the arguments or the disk, CheckpointError for what is wrong with
    the source.
    """
    began = time.monotonic()
    where = pick_device(device)
    origin = open_source(source)
    plan = recipe(origin.checkpoint, origin.config, format, type, group_size, keep, origin.copies)
    slow = is_slow(origin, where)
    wanted = calibration(plan, calib, slow)
    if report is not None:
        _check_report(report, out, gate, calib, origin)
    with ExitStack() as stack:
        output = stack.enter_context(Output(out, origin.files, is_file=plan.is_gguf, force=force))
        with write_errors(output.path):
            writer: Writer
            if plan.is_gguf:
                writer = GGUFFileWriter(output.partial, origin, plan)
            else:
                writer = FolderWriter(output.partial, origin, plan)
            stack.enter_context(writer)
        output.require_space(writer.nbytes)
        check_finite(origin.checkpoint, origin.copies, lambda done, total: progress("checking", done, total))
        spoken, judged = speak(origin, wanted, gate, device, seed, progress, slow)
        with write_errors(output.path):
            errors = _write(writer, origin, plan, spoken, where, progress)
            weights = writer.finish()
        made = Checkpoint.open(output.partial)
        scores = _score(origin.checkpoint, made, judged, device, progress) if gate else None
        failures = tuple(judge.verdict(scores, plan.bits)) if scores else ()
        facts = {
            **_facts(origin, plan),
            "keep": dict(keep or {}),
            "calibration": wanted.facts(seed),
            HASHES: {"weights": weights, **small_digests(made)},
            "relative_l2": errors,
            "scores": scores and scores.to_dict(),
            "failures": failures,
        }
        with write_errors(output.path):
            writer.describe(facts)
        path = output.commit(passed=not failures)
    result = Result(path, writer.nbytes, time.monotonic() - began, scores, failures, errors, origin.notes)
    if report is not None and scores is not None:
        file = {"file": as_text(path.name), "bytes": result.nbytes, "seconds": round(result.seconds)}
        reports.write(report, scores, {**file, **facts})
    return result


def _write(
    writer: Writer, source: Source, plan: Recipe, spoken: Sequence[Drawn], device: torch.device, progress: Progress
) -> dict[str, float]:
    """All tensors, in the recipe's order. Returns the relative L2 of those that were quantized."""
    checkpoint = source.checkpoint
    total, done = sum(checkpoint.info[name].nbytes for name in plan.kinds), 0
    errors: dict[str, float] = {}
    importance: Mapping[str, torch.Tensor] = {}
    search: Iterator[tuple[str, Encoded]] = iter(())
    folded: frozenset[str] = frozenset()
    if spoken:
        walk = Walk(checkpoint, spoken, device, pick_dtype("auto", device, checkpoint))
        if plan.is_gguf:
            importance = imatrix.collect(walk, lambda done, total: progress("calibrating", done, total))
        else:
            folded = plan.searched()
            search = _search(walk, plan, errors)
    ready: dict[str, Encoded] = {}
    for name, kind in plan.kinds.items():
        progress("writing", done, total)
        if name in folded:
            while name not in ready:  # a layer's matrices come in another order than they are stored in
                ready |= [next(search)]
            encoded = ready.pop(name)
        else:
            encoded = encode(name, checkpoint[name], kind, plan.group_size, importance.get(name), device)
            if encoded.relative_l2 is not None:
                errors[name] = encoded.relative_l2
        writer.write(name, encoded)
        checkpoint.release()
        done += checkpoint.info[name].nbytes
    progress("writing", done, total)
    for _ in search:  # to its end, for its last figures
        pass
    return {name: float(f"{errors[name]:.4g}") for name in plan.kinds if name in errors}


def _search(walk: Walk, plan: Recipe, errors: dict[str, float]) -> Iterator[tuple[str, Encoded]]:
    """What AWQ's search makes of the layers, and how far each matrix is from what was folded, into `errors`."""
    wanted = plan.searched()
    for name, values in awq.quantize_model(walk, plan.group_size, report=lambda figures: errors.update(figures.errors)):
        if name not in wanted:
            continue
        if isinstance(values, Grouped):
            yield name, Encoded(searched(name, values))
        else:  # a norm, which --keep may have given another type
            yield name, Encoded(encode(name, values, plan.kinds[name]).parts)


def _score(source: Checkpoint, made: Checkpoint, judged: Sequence[Drawn], device: str, progress: Progress) -> Scores:
    progress("listening", 0, len(judged))
    free = judge.free_runs(
        made.path, judged, device=device, progress=lambda done, total: progress("listening", done, total)
    )
    progress("comparing", 0, 1)
    return judge.score(
        source,
        made,
        judged,
        free,
        device=pick_device(device),
        progress=lambda done, total: progress("comparing", done, total),
    )


def _facts(source: Source, plan: Recipe) -> dict[str, Any]:
    """What a file tells of how it was made."""
    return {
        "tool": f"octavo {importlib.metadata.version('octavo')}",
        "source": source.facts(),
        "format": plan.format,
        "type": plan.title,
        "bits": plan.bits,
    }


def _check_report(
    report: str | os.PathLike, out: str | os.PathLike, gate: bool, calib: str | os.PathLike | None, source: Source
) -> None:
    """Raises RequestError now, if the report could not be written in the end, or would replace what is read."""
    if not gate:
        raise RequestError("A report is made of the gate's scores. Leave out --no-gate, or --report.")
    reports.require_plot()
    read = {os.path.realpath(path) for path in [*source.path.glob("*.json"), *([calib] if calib else [])]}
    for file in reports.files(report):
        if os.path.realpath(file) in read:
            raise RequestError(f"{file} is read as well: writing it would lose what it holds.")
        if os.path.realpath(file) == os.path.realpath(out):
            raise RequestError(f"{file} is the checkpoint to write. Choose another name for the report.")
        AtomicFile(file).abort()
