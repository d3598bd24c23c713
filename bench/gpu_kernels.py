"""Each kernel of the language model alone, at the real shapes: time and share of the copy bandwidth.

A call is what a captured graph of many calls takes per call, and each of them reads other weights or pages: together
more than the L2 cache holds, as in a row. On the CPU tiny shapes go the same way, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from octavo.kernels.decode_attention import decode_attention
from octavo.kernels.embed_rows import start_row
from octavo.kernels.linear import linear
from octavo.kernels.prefill_attention import prefill_attention, prefill_tiles
from octavo.kernels.qk_rope import qk_rope_write
from octavo.kernels.rope import rope_table
from octavo.kernels.rows import Rows
from octavo.kernels.sample_row import sample_row

from .measure import device_ms
from .random_model import dtype_for, widths_for

COLD = 160 << 20  # bytes that a round of calls reads at least: three times the L2 cache of an H200
PAGE = 16
Figure = dict[str, Any]


def linears(device: torch.device) -> Iterator[Figure]:
    """The five products of a row; `matmul_ms` is torch's for the same product, without what is fused around it."""
    cfg = widths_for(device)
    shapes = {
        "qkv": (cfg.q_size + 2 * cfg.kv_size, cfg.hidden_size, "norm"),
        "o": (cfg.hidden_size, cfg.q_size, "residual"),
        "gate_up": (2 * cfg.intermediate_size, cfg.hidden_size, "norm swiglu"),
        "down": (cfg.hidden_size, cfg.intermediate_size, "residual"),
        "head": (cfg.num_codebooks * cfg.codebook_vocab, cfg.hidden_size, "norm"),
    }
    for name, (outputs, inputs, around) in shapes.items():
        weights = _many(lambda: _random(device, outputs, inputs), outputs * inputs, device)  # noqa: B023
        for N in _batches(device, 1, 4, 16, 64, 256):
            x = _random(device, N, inputs)
            options: dict[str, Any] = {"swiglu": "swiglu" in around}
            if "norm" in around:
                options |= {"norm": _random(device, inputs), "eps": 1e-6}
            if "residual" in around:
                options["residual"] = _random(device, N, outputs)
            yield {
                "case": f"{name} N={N}",
                "ms": per_call([partial(linear, x, weight, **options) for weight in weights], device),
                "matmul_ms": per_call([partial(torch.matmul, x, weight.t()) for weight in weights], device),
                "bytes": (outputs * inputs + N * (inputs + outputs)) * x.itemsize,
            }


def attention(device: torch.device) -> Iterator[Figure]:
    """Decoding, by batch and context; and a prompt of 160 rows, whole and behind 89 reused ones."""
    cfg = widths_for(device)
    H, K, D = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    for B, context in (
        ((1, 300), (16, 300), (64, 300), (256, 300), (1, 8192), (16, 8192)) if _on_gpu(device) else ((2, 40),)
    ):
        caches = _many(partial(_pages, device, B, context), B * context * 2 * K * D, device)
        qkv, rows = _random(device, B, H + 2 * K, D), _rows(device, [(1, context)] * B, decoding=True)
        read = B * context * 2 * K * D * qkv.itemsize
        calls: list[Callable[[], object]] = [partial(decode_attention, qkv[:, :H], pages, rows) for pages in caches]
        yield {"case": f"decode, batch {B}, context {context}", "ms": per_call(calls, device), "bytes": read}
        calls = [partial(qk_rope_write, qkv, _random(device, H + K, D), 1e-6, rows, pages) for pages in caches]
        moved = (2 * qkv.numel() + B * 2 * K * D) * qkv.itemsize
        yield {
            "case": f"norm, rope, write, batch {B}, context {context}",
            "ms": per_call(calls, device),
            "bytes": moved,
        }
    for spans in ([(160, 160)], [(71, 160)], [(71, 160)] * 28) if _on_gpu(device) else ([(5, 20)],):
        caches = _many(partial(_pages, device, len(spans), spans[0][1]), len(spans) * spans[0][1] * 2 * K * D, device)
        q, rows = _random(device, sum(n for n, _ in spans), H, D), _rows(device, spans, decoding=False)
        calls = [partial(prefill_attention, q, pages, rows) for pages in caches]
        case = f"prefill, {len(spans)} prompts, {spans[0][0]} of {spans[0][1]} rows"
        yield {"case": case, "ms": per_call(calls, device)}


def sampling(device: torch.device) -> Iterator[Figure]:
    """The draw of eight codes with top-k 50, and the embedding of the row before."""
    cfg = widths_for(device)
    C, V = cfg.num_codebooks, cfg.codebook_vocab
    for B in _batches(device, 1, 16, 64, 256):
        row, left, slot, prompt, active, positions = torch.zeros(6, B, dtype=torch.int32, device=device)
        top_k, seed = torch.full((B,), 50, dtype=torch.int32, device=device), torch.arange(B, device=device)
        temperature, top_p = torch.full((2, B), 0.8, device=device)
        codes = torch.zeros(B, 4096, C, dtype=torch.int16, device=device)
        out = torch.zeros(B, C + 1, dtype=torch.int16, device=device)
        slot.copy_(torch.arange(B))
        row.fill_(20)  # all codebooks are drawn
        left.fill_(-1)
        for mode, share in (("top-k", torch.ones_like(top_p)), ("top-k, top-p", top_p)):
            logits = _many(partial(_random, device, B, C * V), B * C * V, device)
            lane = (row, seed, temperature, top_k, share, left, slot, codes, out, cfg.boc, cfg.eoc)
            calls: list[Callable[[], object]] = [partial(sample_row, one, *lane) for one in logits]
            read = B * C * V * logits[0].itemsize
            yield {"case": f"sample, {mode}, batch {B}", "ms": per_call(calls, device), "bytes": read}
        tables = _many(partial(_random, device, C * V, cfg.hidden_size), C * V * cfg.hidden_size, device)
        calls = [partial(start_row, out[:, :C], table, row, prompt, active, positions) for table in tables]
        read = B * (C + 1) * cfg.hidden_size * tables[0].itemsize
        yield {"case": f"embed, batch {B}", "ms": per_call(calls, device), "bytes": read}


def matrix_rate(device: torch.device) -> Iterator[Figure]:
    """What the matrix units reach at best, for the arithmetic of prefill and large batches."""
    n = 8192 if _on_gpu(device) else 64
    a, b = _random(device, n, n), _random(device, n, n)
    ms = device_ms(partial(torch.matmul, a, b), device)
    yield {
        "case": f"matmul {n} x {n} x {n}, {str(a.dtype).removeprefix('torch.')}",
        "ms": ms,
        "tflop_s": 2 * n**3 / ms / 1e9,
    }


BENCHMARKS: dict[str, Callable[[torch.device], Iterator[Figure]]] = {
    "matrix rate": matrix_rate,
    "linear": linears,
    "attention": attention,
    "sampling": sampling,
}


def per_call(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Milliseconds of one of them, when all of them run one after the other, captured as a graph on a GPU."""

    def everything() -> None:
        for call in calls:
            call()

    if not _on_gpu(device):
        return device_ms(everything, device, repetitions=2, warm_up=1) / len(calls)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            everything()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        everything()
    return device_ms(graph.replay, device, repetitions=10) / len(calls)


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _batches(device: torch.device, *sizes: int) -> tuple[int, ...]:
    return sizes if _on_gpu(device) else (1, 3)


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype_for(device))


def _many(make: Callable[[], torch.Tensor], values: int, device: torch.device) -> list[torch.Tensor]:
    """As many as make the caches useless; at least enough calls that a graph's launch does not count."""
    count = max(16, -(-COLD // (values * 2))) if _on_gpu(device) else 2
    return [make() for _ in range(min(count, 512))]


def _pages(device: torch.device, B: int, context: int) -> torch.Tensor:
    cfg = widths_for(device)
    return _random(device, B * -(-context // PAGE) + 1, PAGE, 2, cfg.num_kv_heads, cfg.head_dim)


def _rows(device: torch.device, spans: list[tuple[int, int]], decoding: bool) -> Rows:
    """spans: (rows, context) of each sequence. Its pages lie anywhere, as they do after a while."""
    cfg = widths_for(device)
    B, T = len(spans), -(-max(context for _, context in spans) // PAGE)
    generator = torch.Generator().manual_seed(0)
    table = (torch.randperm(B * T, generator=generator) + 1).view(B, T)
    positions = torch.cat([torch.arange(context - n, context) for n, context in spans])
    owner = torch.repeat_interleave(torch.arange(B), torch.tensor([n for n, _ in spans]))
    return Rows(
        positions.to(device, torch.int32),
        owner.to(device, torch.int32),
        table.to(device, torch.int32),
        rope_table(max(context for _, context in spans), cfg.head_dim, cfg.rope_theta, device, dtype_for(device)),
        PAGE,
        spans=None if decoding else spans,
        tiles=prefill_tiles(spans, device) if _on_gpu(device) and not decoding else None,
        counters=torch.zeros(B * cfg.num_kv_heads, dtype=torch.int32, device=device),
    )
