"""A row of the real model on a GPU: its share of the copy bandwidth by batch (G1, G4), and rows and prefills against
transformers with the same weights (R1, R2, R3, R5). On the CPU a tiny model goes the same way, for tests.

The row is the whole one, replayed: from the codes before to the codes drawn, read by the host one row late.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.prompt import Prompt
from octavo.runtime.runner import Runner
from octavo.runtime.scheduler import Scheduler, Sequence

from .baseline import Baseline, mark, rewind
from .measure import Case, Result, interleave
from .prefill import prefill_of
from .random_model import baseline, cache_bytes, dtype_for, random_model, weight_bytes
from .request import Probe
from .step import GREEDY, Course, Sides

CONTEXT = 300
ROWS_TIMED = 32  # the context is right in the middle of them
FRACTION = {1: ("G1", 0.80), 16: ("G4", 0.75), 64: ("G4", 0.70), 128: ("G4", 0.65), 256: ("G4", 0.60)}
BATCHES = (1, 8, 16, 64, 128, 256)
RATIOS = {"R1": 10.0, "R2": 1.3, "R3": 7.0}
Figure = dict[str, Any]


def sizes(device: torch.device) -> tuple[int, ...]:
    return BATCHES if device.type == "cuda" else (1, 3)


def step_by_batch(device: torch.device) -> Iterator[Figure]:
    """G1, G4."""
    model, runner = random_model(device), _runner(device)
    runner.capture()
    for batch in sizes(device):
        with running(runner, batch, CONTEXT - ROWS_TIMED // 2) as row:
            rows = Case(lambda: [row() for _ in range(ROWS_TIMED // 4)])  # noqa: B023
            ms = interleave({"rows": rows}, 3, warm_up=1, device=device)["rows"].median / (ROWS_TIMED // 4)
        goal, asked = FRACTION.get(batch, ("", None))
        yield {
            "case": f"batch {batch}, context {CONTEXT}",
            "ms": ms,
            "bytes": weight_bytes(model) + batch * cache_bytes(model, CONTEXT),
            "audio_s_per_s": batch * 40 / ms,
            **({"goal": goal, "asked": asked} if asked else {}),
        }


def step_against_transformers(device: torch.device) -> Iterator[Figure]:
    """R1, R2, R3, behind a check of the hidden states. Both sides draw greedily from the logits."""
    check = _checked(device)
    theirs, runner = baseline(random_model(device), dtype_for(device)), _runner(device)
    runner.capture()
    for batch in sizes(device)[:: 3 if device.type == "cuda" else 1][:2]:  # 1 and 64
        eager = eager_step(theirs, batch)
        cases = {"DynamicCache, eager": Case(*eager)}
        if batch == 1:
            cases["StaticCache, captured"] = Case(static_step(theirs, capture=device.type == "cuda"))
        with running(runner, batch, CONTEXT - ROWS_TIMED // 2) as row:
            timings = interleave({"octavo": Case(row), **cases}, ROWS_TIMED - 3, device=device)
        for name in cases:
            goal = "R3" if batch > 1 else "R1" if "eager" in name else "R2"
            yield {
                "case": f"batch {batch}, context {CONTEXT}, against {name}",
                "ms": timings["octavo"].median,
                "baseline_ms": timings[name].median,
                "times": timings[name].median / timings["octavo"].median,
                "goal": goal,
                "asked": RATIOS[goal],
                "check": check,
            }


def prefill_against_transformers(device: torch.device) -> Iterator[Figure]:
    """R5: 160 rows, and the same with 89 of them reused."""
    model = random_model(device)
    runner = Probe(model, EngineConfig())
    exact, theirs = baseline(model, torch.float32), baseline(model, dtype_for(device))
    for result, asked in zip(prefill_of(runner, theirs, exact, "real shape", 12), (9.0, 7.0), strict=True):
        yield as_figure(result, "R5", asked)


BENCHMARKS: dict[str, Callable[[torch.device], Iterator[Figure]]] = {
    "row": step_by_batch,
    "row against transformers": step_against_transformers,
    "prefill against transformers": prefill_against_transformers,
}


def as_figure(result: Result, goal: str, asked: float) -> Figure:
    times = {name: timing.median for name, timing in result.timings.items()}
    check = f"{result.checks[0].error:.3g} <= {result.checks[0].limit:.3g}"
    return {
        "case": f"{result.what}, {result.case}",
        "ms": times["octavo"],
        "baseline_ms": times["baseline"],
        "times": times["baseline"] / times["octavo"],
        "goal": goal,
        "asked": asked,
        "check": check,
    }


def _runner(device: torch.device) -> Runner:
    batch = max(sizes(device))
    return Runner(random_model(device), EngineConfig(max_batch=batch, kv_rows=(CONTEXT + 68) * batch, max_context=512))


@contextlib.contextmanager
def running(runner: Runner, batch: int, context: int) -> Iterator[Callable[[], None]]:
    """So many requests behind `context` rows each; gives what makes their next row and reads the one before."""
    scheduler, draw = Scheduler(runner.config), np.random.default_rng(batch)
    for number in range(batch):
        ids = draw.integers(0, runner.model.cfg.vocab_size, context).tolist()
        scheduler.add(Sequence(Prompt(ids, None, 1), SamplingParams(seed=number, max_rows=64)))
    while len(scheduler.running) < batch:
        chunks = scheduler.schedule()
        runner.prefill(chunks)
        scheduler.prefilled(chunks)
        if any(chunk.completes for chunk in chunks):
            runner.collect()

    def row() -> None:
        runner.decode()
        while runner.under_way > runner.lookahead:
            runner.collect()

    yield row
    while runner.under_way:
        runner.collect()
    while runner.lanes.running:
        runner.leave(runner.lanes.running - 1, runner.lanes.running - 1)


def _checked(device: torch.device) -> str:
    """Raises CheckFailed unless octavo's hidden states are as close to fp32 as transformers' are."""
    model, course = random_model(device), Course.random(device)
    exact = baseline(model, torch.float32)
    with exact.rounded_rope():
        want, _ = course.through(exact)
    runner = Probe(model, EngineConfig())
    _, check = Sides(runner, baseline(model, dtype_for(device)), course, want).request(GREEDY)
    return f"{check.error:.3g} <= {check.limit:.3g}"


def eager_step(theirs: Baseline, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A row behind CONTEXT of transformers' model, as it is usually called; and what sets it back."""
    cache, rows = theirs.start(), _rows(theirs, batch)
    with torch.inference_mode():
        prompt = theirs.embed_rows(rows[:1].expand(CONTEXT, -1))
        theirs.forward_batch(prompt.expand(batch, -1, -1), cache)
    held = mark(cache)

    @torch.inference_mode()
    def step() -> list:
        hidden = theirs.forward_batch(theirs.embed_rows(rows)[:, None], cache)
        return theirs.logits(hidden[:, -1]).argmax(-1).tolist()

    return step, lambda: rewind(cache, held)


def static_step(theirs: Baseline, capture: bool) -> Callable[[], object]:
    """The same of one request with transformers' StaticCache, captured as a CUDA graph: always the same row."""
    from transformers import StaticCache

    device, length = theirs.table.device, CONTEXT + 16
    cache, rows = StaticCache(config=theirs.model.config, max_cache_len=length), _rows(theirs, 1)
    at = torch.full((1,), CONTEXT, device=device)
    mask = (torch.arange(length, device=device) <= CONTEXT)[None, None, None]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        for layer in cache.layers:  # newer releases count by themselves
            count = getattr(layer, "cumulative_length", None)
            if isinstance(count, torch.Tensor):
                count.fill_(CONTEXT)
        x = theirs.embed_rows(rows)[:, None]
        output = theirs.model(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=at[None],
            cache_position=at,
            past_key_values=cache,
            use_cache=True,
        )
        return theirs.logits(output.last_hidden_state[:, -1]).argmax(-1)

    if not capture:
        return lambda: forward().tolist()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = forward()

    def replay() -> list:
        graph.replay()
        return codes.tolist()

    return replay


def _rows(theirs: Baseline, batch: int) -> torch.Tensor:
    rows = torch.randint(0, 1024, (batch, 8), generator=torch.Generator().manual_seed(batch))
    return rows.to(theirs.table.device)
