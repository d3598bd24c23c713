"""C3: 24 requests of 24 to 120 rows, all there at once. octavo runs them through 8 slots, and whoever has ended makes
room for the next; transformers one by one, and eight at a time, each batch until its longest has ended.

Nobody draws an end token: all make exactly the rows that were asked for, greedily. Prompts are equally long, so that
the baseline's batches need no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from octavo.runtime.config import SamplingParams
from octavo.runtime.prompt import Prompt
from octavo.runtime.scheduler import Scheduler, Sequence

from .baseline import Baseline
from .measure import Check, Result, take_turns
from .request import Probe, load_probe
from .step import Course, Sides

REQUESTS, SLOTS, PROMPT, ROWS = 24, 8, 40, (24, 120)
ASKED = {"one by one": 3.4, "padded batches of 8": 1.5}
GREEDY = SamplingParams(temperature=0)


def batching_results(
    folder: Path, shape: str, device: torch.device, repetitions: int, rows: tuple[int, int] = ROWS
) -> list[Result]:
    """C3 in bf16, against both. Raises CheckFailed where the hidden states differ or rows are missing."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, 256, (REQUESTS, PROMPT))
    lengths = draw.integers(rows[0], rows[1] + 1, REQUESTS)
    check = _same_model(folder, device)
    runner, baseline = load_probe(folder, device, torch.bfloat16), Baseline(folder, device, torch.bfloat16)
    batches = range(0, REQUESTS, SLOTS)
    jobs: dict[str, Callable[[], Iterator[list]]] = {
        "octavo": lambda: ours(runner, prompts, lengths),
        "one by one": lambda: theirs(baseline, [prompts[n : n + 1] for n in range(REQUESTS)], lengths),
        "padded batches of 8": lambda: theirs(
            baseline,
            [prompts[n : n + SLOTS] for n in batches],
            np.array([lengths[n : n + SLOTS].max() for n in batches]),
        ),
    }
    made = sum(len(step) for step in jobs["octavo"]())
    checks = check, Check("rows that are missing", float(abs(made - lengths.sum())), 0)
    seconds = take_turns(jobs, repetitions)
    case = f"{shape}, bf16, {REQUESTS} requests of {rows[0]} to {rows[1]} rows"
    results = []
    for name, asked in ASKED.items():
        told = f"{case}, {lengths.sum() / seconds['octavo']:.0f} rows/s, against {name}"
        ratio = seconds[name] / seconds["octavo"]
        results.append(Result("C3", "continuous batching", told, ratio, "times as fast", asked, checks=checks))
    return results


def _same_model(folder: Path, device: torch.device) -> Check:
    """Both sides' hidden states behind the same rows, as for C1."""
    course, exact = Course.random(device), Baseline(folder, device, torch.float32)
    with exact.rounded_rope():
        want, _ = course.through(exact)
    runner, baseline = load_probe(folder, device, torch.bfloat16), Baseline(folder, device, torch.bfloat16)
    return Sides(runner, baseline, course, want).request(GREEDY)[1]


def ours(runner: Probe, prompts: np.ndarray, lengths: np.ndarray) -> Iterator[list[Sequence]]:
    """Runs them all; yields after every step, with those who got a row in it."""
    scheduler, rows_left = Scheduler(runner.config), {}
    for ids, length in zip(prompts.tolist(), lengths.tolist(), strict=True):
        sequence = Sequence(Prompt(ids, None, 1), SamplingParams(temperature=0, max_rows=length))
        scheduler.add(sequence)
        rows_left[sequence] = length

    def count(sequences: list[Sequence]) -> None:
        runner.collect()
        for sequence in sequences:
            rows_left[sequence] -= 1
            if not rows_left[sequence]:
                moved = scheduler.finish(sequence)
                assert moved is not None
                runner.leave(*moved)
                scheduler.free_slot(sequence)

    while scheduler.busy:
        before = len(scheduler.running)
        if chunks := scheduler.schedule():
            runner.prefill(chunks)
            scheduler.prefilled(chunks)
            newcomers = scheduler.running[before:]
            count(newcomers)
            yield newcomers
        if everybody := list(scheduler.running):
            runner.decode()
            count(everybody)
            yield everybody


def theirs(baseline: Baseline, batches: list[np.ndarray], lengths: np.ndarray) -> Iterator[list[list[int]]]:
    """One batch of ids [B, n] after the other, each with as many rows as `lengths` says; yields each row, [B, 8]."""
    for ids, length in zip(batches, lengths.tolist(), strict=True):
        cache = baseline.start()
        with torch.inference_mode():
            x = baseline.model.embed_tokens(torch.from_numpy(ids).to(baseline.table.device))
        for _ in range(length):
            with torch.inference_mode():
                hidden = baseline.forward_batch(x, cache)[:, -1]
                codes = baseline.logits(hidden).argmax(-1)
                x = baseline.embed_rows(codes)[:, None]
                row = codes.tolist()
            yield row
