"""The benchmarks that gpu_check runs, on the CPU with tiny shapes: they run, and say what the report needs."""

from __future__ import annotations

import json

import pytest
import torch

from octavo.bench import gpu_codec, gpu_engine, gpu_kernels, gpu_quant, gpu_row
from octavo.bench.gpu_engine import union
from octavo.bench.random_model import baseline, random_model, weight_bytes

CPU = torch.device("cpu")
CASES = [(part, name) for part in (gpu_kernels, gpu_row, gpu_codec, gpu_engine, gpu_quant) for name in part.BENCHMARKS]


@pytest.mark.parametrize("part, name", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_benchmark(part, name, monkeypatch):
    monkeypatch.setattr(gpu_codec, "STREAMS", (1, 2))
    monkeypatch.setattr(gpu_row, "ROWS_TIMED", 8)
    for figure in part.BENCHMARKS[name](CPU):
        assert json.loads(json.dumps(figure))["case"]
        assert ("goal" in figure) == ("asked" in figure)
        for key in ("ms", "baseline_ms", "times", "audio_s_per_s", "bytes"):
            assert figure.get(key, 1) > 0, (key, figure)


def test_the_random_model_and_its_baseline_are_the_same_memory():
    model = random_model(CPU)
    theirs = baseline(model, torch.float32)
    layer = theirs.model.layers[1]
    assert layer.mlp.up_proj.weight.data_ptr() == model.body.layers[1].gate_up_proj.weight.chunk(2)[1].data_ptr()
    assert theirs.table.data_ptr() == model.audio_head.weight.data_ptr()


def test_what_a_row_reads():
    model = random_model(CPU)
    cfg = model.cfg
    layer = cfg.hidden_size * (2 * cfg.q_size + 2 * cfg.kv_size + 3 * cfg.intermediate_size)
    norms = 2 * cfg.hidden_size + (cfg.num_heads + cfg.num_kv_heads) * cfg.head_dim
    rest = cfg.hidden_size * (8 * 1026 + 1)
    assert weight_bytes(model) == 4 * (cfg.num_layers * (layer + norms) + rest)


@pytest.mark.parametrize(
    "spans, covered",
    [
        ([], 0),
        ([(0, 4), (2, 5)], 5),
        ([(0, 10), (2, 3), (4, 5)], 10),
        ([(-5, 1), (9, 15)], 2),
        ([(12, 20)], 0),
        ([(1, 2), (4, 6)], 3),
    ],
)
def test_union(spans, covered):
    assert union(spans, 0, 10) == covered
