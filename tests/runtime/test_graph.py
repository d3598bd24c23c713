"""Captured rows: a replay is the eager row, to the bit, whoever comes, goes and moves in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.runtime import Engine
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.graph import row_sizes
from octavo.runtime.models import load_model
from octavo.runtime.prompt import Prompt
from octavo.runtime.runner import Runner
from octavo.runtime.scheduler import Scheduler, Sequence

MOST = 32


def test_sizes_of_captured_rows():
    assert row_sizes(1) == (1,)
    assert row_sizes(8) == (1, 2, 4, 8)
    assert row_sizes(24) == (1, 2, 4, 8, 16, 24)
    assert row_sizes(256) == (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


def life(folder, graphs: bool) -> list[np.ndarray]:
    """Every row of a batch that grows through all captured sizes, and shrinks from the front."""
    config = EngineConfig(max_batch=MOST, kv_rows=4096, max_context=128, graphs=graphs)
    model = load_model(Checkpoint.open(folder), torch.device("cuda"), torch.bfloat16, lambda done, total: None)
    runner, scheduler, rows = Runner(model, config), Scheduler(config), []
    runner.capture()
    for number in range(MOST):
        prompt = Prompt([1 + (number * k) % 200 for k in range(3 + number % 5)], None, 1)
        top_k, top_p = 50 * (number % 3), 1 - 0.2 * (number % 2)
        scheduler.add(Sequence(prompt, SamplingParams(0.3 * (number % 4), top_k, top_p, seed=number, max_rows=100)))
        chunks = scheduler.schedule()
        runner.prefill(chunks)
        scheduler.prefilled(chunks)
        rows.append(runner.collect()[0].copy())
        runner.decode()
        rows.append(runner.collect()[0].copy())
    while scheduler.running:
        runner.leave(*scheduler.finish(scheduler.running[len(scheduler.running) // 3]))  # the last lane moves
        if scheduler.running:
            runner.decode()
            rows.append(runner.collect()[0].copy())
    return rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replay_equals_eager_bit_for_bit_at_every_size(tiny_dir):
    captured, eager = life(tiny_dir, graphs=True), life(tiny_dir, graphs=False)
    assert len(captured) == len(eager) == 2 * MOST + MOST - 1
    for number, (a, b) in enumerate(zip(captured, eager, strict=True)):
        assert np.array_equal(a, b), (number, a.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_deterministic_requests_are_the_same_alone_and_among_63_others(tiny_dir):
    options = {"device": "cuda", "dtype": "bf16", "deterministic": True, "max_batch": 64, "kv_rows": 16384}
    with Engine.load(tiny_dir, **options) as engine:
        ask = {"seed": 77, "max_rows": 100, "temperature": 1.0, "guard": False}
        alone = engine.generate("Who else is here?", **ask)
        before = [engine.stream(f"Other {n}. " * (n % 7 + 1), seed=n, max_rows=30 + n) for n in range(31)]
        mine = engine.stream("Who else is here?", **ask)
        after = [engine.stream(f"Other {n}. " * (n % 7 + 1), seed=n, max_rows=30 + n) for n in range(32)]
        assert np.array_equal(mine.result().codes, alone.codes)
        assert all(stream.result().usage.rows for stream in before + after)
