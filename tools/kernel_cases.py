"""Every kernel at the shapes of the real model, for the compile report: public ops, called on memory nobody fills.

A case is one call of an op of octavo.kernels. Add one here when a kernel is added; a kernel without a case fails
tests/kernels/test_compile.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from octavo.kernels.byte_code import Bytes
from octavo.kernels.byte_dense import byte_dense
from octavo.kernels.codec_conv import codec_conv
from octavo.kernels.codec_head import codec_head
from octavo.kernels.codec_lookup import codec_lookup
from octavo.kernels.codec_unit import WIDEST, Unit, codec_unit
from octavo.kernels.codec_window import COLUMNS, Window
from octavo.kernels.decode_attention import decode_attention
from octavo.kernels.embed_rows import embed_rows, start_row
from octavo.kernels.fp8_rows import fp8_rows
from octavo.kernels.int4 import Int4
from octavo.kernels.int8 import Int8
from octavo.kernels.linear import linear
from octavo.kernels.packed import Packed
from octavo.kernels.prefill_attention import prefill_attention, prefill_tiles
from octavo.kernels.qk_rope import qk_rope_write
from octavo.kernels.rms_norm import rms_norm
from octavo.kernels.rows import Rows
from octavo.kernels.sample_row import sample_row
from octavo.kernels.swiglu import swiglu

HIDDEN, FFN, LENGTH = 2560, 9728, 8192  # LENGTH: rows of context at most
H, K, D = 32, 8, 128  # query heads, key and value heads, their width
C, V = 8, 1026  # codebooks, their entries
PAGES, PAGE_SIZE, SEATS = 4096, 16, 256
LAYERS = {  # W: [OUT, IN], and what stands before and after the product
    "qkv": ((H + 2 * K) * D, HIDDEN, "norm"),
    "o": (HIDDEN, H * D, "residual"),
    "gate_up": (2 * FFN, HIDDEN, "norm swiglu"),
    "down": (HIDDEN, FFN, "residual"),
    "head": (C * V, HIDDEN, "norm"),
}
BLOCKS = ((8, 512), (5, 256), (4, 128), (2, 64), (3, 32))  # of the codec's decoder: stride, width


@dataclass(frozen=True)
class Case:
    name: str  # the op, then what tells this call from its other calls
    call: Callable[..., object]  # of functions of this file
    arguments: tuple = ()
    hot: bool = True  # runs in every row or every codec push, so it must not spill
    wide: bool = True  # reads enough for 16-byte loads
    mma: bool = False  # planned on matrix instructions
    level: int = 2  # 1: one case of each kernel, 2: what else differs in its code, 3: the other shapes of the model


def bf16(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


# The rows of the language model


def lanes(B: int, count: int) -> list[torch.Tensor]:
    """Columns of one matrix, as the runner keeps what is per lane."""
    return list(zeros(B, count).unbind(1))


def rows(B: int, spans: list[tuple[int, int]] | None = None, deterministic: bool = False) -> Rows:
    N = sum(n for n, _ in spans) if spans else B
    tiles = prefill_tiles(spans, torch.device("cpu")) if spans else None
    table, counters = zeros(B, LENGTH // PAGE_SIZE), zeros(B * K)
    return Rows(zeros(N), zeros(N), table, bf16(LENGTH, 2, D), PAGE_SIZE, spans, tiles, counters, deterministic)


def qkv(N: int) -> torch.Tensor:
    return bf16(N, H + 2 * K, D)


def pages() -> torch.Tensor:
    return bf16(PAGES, PAGE_SIZE, 2, K, D)


def norm(N: int) -> None:
    rms_norm(bf16(N, HIDDEN), bf16(HIDDEN), 1e-6)


def gate(N: int) -> None:
    swiglu(bf16(N, 2 * FFN))


def rope(N: int) -> None:
    qk_rope_write(qkv(N), bf16(H + K, D), 1e-6, rows(N), pages())


def decode(B: int, deterministic: bool = False) -> None:
    decode_attention(qkv(B)[:, :H], pages(), rows(B, deterministic=deterministic))


def prefill(*spans: tuple[int, int]) -> None:
    prefill_attention(qkv(sum(n for n, _ in spans))[:, :H], pages(), rows(len(spans), list(spans)))


def embed(N: int) -> None:
    embed_rows(zeros(N, C, dtype=torch.int16), bf16(C * V, HIDDEN))


def start(B: int) -> None:
    start_row(zeros(B, C + 1, dtype=torch.int16)[:, :C], bf16(C * V, HIDDEN), *lanes(B, 4))


def sample(B: int, dtype: torch.dtype = torch.bfloat16) -> None:
    row, top_k, left, slot = lanes(B, 4)
    seed, (temperature, top_p) = zeros(B, dtype=torch.int64), torch.zeros(B, 2).unbind(1)
    codes, out = zeros(SEATS, LENGTH, C, dtype=torch.int16), zeros(B, C + 1, dtype=torch.int16)
    logits = torch.empty(B, C * V, dtype=dtype)
    sample_row(logits, row, seed, temperature, top_k, top_p, left, slot, codes, out, boc=1024, eoc=1025)


def layer(name: str, N: int, deterministic: bool = False, device: str = "cpu") -> partial[torch.Tensor]:
    """The call of one linear layer of the model, on memory of its own."""
    OUT, IN, around = LAYERS[name]
    new = partial(torch.empty, dtype=torch.bfloat16, device=device)
    options: dict[str, Any] = {"swiglu": "swiglu" in around, "deterministic": deterministic}
    if "norm" in around:
        options |= {"norm": new(IN), "eps": 1e-6}
    if "residual" in around:
        options["residual"] = new(N, OUT)
    return partial(linear, new(N, IN), new(OUT, IN), **options)


def call_layer(*arguments: Any) -> None:
    layer(*arguments)()


def layers(N: int, deterministic: bool = False) -> list[Case]:
    tag = f"N={N}{' deterministic' if deterministic else ''}"
    levels = {"gate_up": 1 if N in (1, 16) else 2, "o": 2, "qkv": 3, "down": 3, "head": 3}
    return [
        Case(f"linear {name} {tag}", call_layer, (name, N, deterministic), mma=N > 1, level=levels[name])
        for name in LAYERS
    ]


def int4(OUT: int, IN: int, group: int = 128, levels: bool = False) -> Int4:
    tables = {torch.bfloat16: bf16(16)} if levels else None
    return Int4(zeros(OUT, IN // 8), zeros(OUT, IN // group), 1.0, tables, not levels, (OUT, IN), group)


def int4_layer(name: str, N: int, group: int = 128, levels: bool = False, deterministic: bool = False) -> None:
    OUT, IN, _ = LAYERS[name]
    packed_layer(name, N, int4(OUT, IN, group, levels), deterministic)


def packed_layer(name: str, N: int, weight: Packed, deterministic: bool) -> None:
    OUT, IN, around = LAYERS[name]
    norm = torch.empty(IN) if "norm" in around else None
    residual = bf16(N, OUT) if "residual" in around else None
    swiglu = "swiglu" in around
    weight.linear(bf16(N, IN), norm=norm, eps=1e-6, residual=residual, swiglu=swiglu, deterministic=deterministic)


def int4_dense() -> None:
    int4(256, HIDDEN).dense(torch.bfloat16)


def int4_layers(N: int, levels: dict[str, int], *options: Any) -> list[Case]:
    """levels: of the cases, by layer; options: those of `int4_layer` from the group on."""
    tag = " ".join(map(str, ("int4", *options)))
    return [
        Case(f"{tag} {name} N={N}", int4_layer, (name, N, *options), mma=True, level=level)
        for name, level in levels.items()
    ]


def bytes_of(OUT: int, IN: int, kind: str) -> Bytes:
    """kind: "fp8", "int8" with a scale a row, or "int8/32" or "int8/32+" with scales, and offsets, of groups."""
    group = int(kind.rstrip("+").split("/")[1]) if "/" in kind else 0
    scale = torch.empty(OUT, IN // group, dtype=torch.float16) if group else torch.empty(OUT)
    offset = scale.clone() if kind.endswith("+") else None
    return Bytes(torch.empty(OUT, IN, dtype=torch.uint8), scale, offset, group, 1.0, IN, kind == "fp8")


def byte_layer(kind: str, name: str, N: int, deterministic: bool = False) -> None:
    OUT, IN, _ = LAYERS[name]
    packed_layer(name, N, Int8(bytes_of(OUT, IN, kind), (OUT, IN)), deterministic)


def byte_layers(kind: str, N: int, levels: dict[str, int]) -> list[Case]:
    return [
        Case(f"{kind} {name} N={N}", byte_layer, (kind, name, N), mma=N > 1, level=level)
        for name, level in levels.items()
    ]


def dense_bytes(kind: str) -> None:
    byte_dense(bytes_of(256, HIDDEN, kind), torch.bfloat16)


def rows_to_fp8(N: int) -> None:
    fp8_rows(bf16(N, HIDDEN), HIDDEN, torch.empty(HIDDEN), 1e-6)


# A push of F frames through the codec


def window(F: int, rate: int, tail: int, width: int) -> Window:
    x, tails = torch.empty(F * rate, width), torch.empty(2, SEATS, tail, width)
    return Window(x, tails, zeros(F, COLUMNS), rate, delay=9455)


def snake(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(width), torch.empty(width)


def conv(
    F: int, rate: int, tail: int, inputs: int, taps: int, outputs: int, dtype: torch.dtype,
    with_snake: bool = True, with_skip: bool = False,
) -> None:  # fmt: skip
    weight, out = torch.empty(taps, inputs, outputs, dtype=dtype), torch.empty(F * rate, outputs)
    activation = snake(inputs) if with_snake else None
    skip = window(F, rate, 54, outputs) if with_skip else None
    codec_conv(window(F, rate, tail, inputs), weight, torch.empty(outputs), out, activation, skip)


def unit(F: int, rate: int, width: int, dtype: torch.dtype) -> None:
    conv1, conv2 = (torch.empty(taps, width, width, dtype=dtype) for taps in (7, 1))
    weights = Unit(snake(width), conv1, torch.empty(width), snake(width), conv2, torch.empty(width))
    codec_unit(window(F, rate, 54, width), weights, torch.empty(F * rate, width))


def head(F: int) -> None:
    codec_head(window(F, 960, 6, 32), snake(32), torch.empty(7, 32), torch.empty(1), torch.empty(F * 960))


def lookup(F: int) -> None:
    codes = zeros(SEATS, LENGTH, C, dtype=torch.int16)
    codec_lookup(codes, zeros(F, COLUMNS), torch.empty(C * 1024, 256), torch.empty(256), torch.empty(F, 256))


def convolutions(F: int, dtype: torch.dtype, chosen: dict[str, int]) -> list[Case]:
    """`chosen`: the levels of those that differ in more than their sizes."""
    calls: dict[str, tuple] = {"codec_conv first": (conv, F, 1, 6, 256, 7, 1024, dtype, False)}
    rate, inputs = 1, 1024
    for stride, width in BLOCKS:
        calls[f"codec_conv up {width}"] = conv, F, rate, 1, inputs, 2, stride * width, dtype
        rate, inputs = rate * stride, width
        if width <= WIDEST:
            calls[f"codec_unit {width}"] = unit, F, rate, width, dtype
        else:
            calls[f"codec_conv in {width}"] = conv, F, rate, 54, width, 7, width, dtype
            calls[f"codec_conv out {width}"] = conv, F, rate, 0, width, 1, width, dtype, True, True
    tag = f"F={F} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
    return [
        Case(f"{name} {tag}", call, tuple(arguments), mma=True, level=chosen.get(name, 3))
        for name, (call, *arguments) in calls.items()
    ]


CASES = [
    Case("rms_norm N=64", norm, (64,), level=1),
    Case("swiglu N=64", gate, (64,), level=1),
    *layers(1),
    *layers(8),
    *layers(16),
    *layers(64, deterministic=True),
    *int4_layers(1, {"gate_up": 1, "o": 2, "qkv": 3, "down": 3}),
    *int4_layers(2, {"o": 3, "gate_up": 3}),
    *int4_layers(4, {"o": 3, "gate_up": 3}),
    *int4_layers(8, {"gate_up": 3, "o": 2, "qkv": 3, "down": 3}),
    *int4_layers(16, {"gate_up": 1, "o": 3, "qkv": 3, "down": 3}),
    *int4_layers(24, {"o": 3}),
    *int4_layers(64, {"gate_up": 3, "o": 1, "qkv": 3, "down": 3}),
    *int4_layers(128, {"gate_up": 3, "o": 3}),
    *int4_layers(64, {"gate_up": 3, "o": 3}, 128, False, True),
    *int4_layers(1, {"gate_up": 2, "o": 3}, 32),
    *int4_layers(16, {"gate_up": 2, "o": 3}, 32),
    *int4_layers(64, {"o": 3}, 32),
    *int4_layers(1, {"o": 3}, 16),
    *int4_layers(16, {"o": 3, "gate_up": 3}, 16),
    *int4_layers(1, {"o": 2}, 64, True),
    *int4_layers(16, {"o": 3}, 64, True),
    Case("int4 dense", int4_dense, level=1),
    *byte_layers("fp8", 1, {"gate_up": 1, "o": 3, "qkv": 3, "down": 3, "head": 3}),
    *byte_layers("fp8", 8, {"gate_up": 3, "o": 3}),
    *byte_layers("fp8", 16, {"gate_up": 2, "o": 3}),
    *byte_layers("int8", 1, {"gate_up": 3, "o": 2, "qkv": 3, "down": 3}),
    *byte_layers("int8", 8, {"qkv": 2, "gate_up": 3}),
    *byte_layers("int8", 16, {"gate_up": 3, "o": 3, "down": 3}),
    *byte_layers("int8", 64, {"o": 2, "gate_up": 3}),
    *byte_layers("int8", 128, {"gate_up": 3, "down": 3}),
    *byte_layers("int8/32", 1, {"gate_up": 2, "down": 3}),
    *byte_layers("int8/32+", 1, {"o": 3}),
    *byte_layers("int8/32+", 16, {"gate_up": 1, "o": 3}),
    *byte_layers("int8/32+", 64, {"down": 1, "gate_up": 3}),
    Case("byte_dense int8/32+", dense_bytes, ("int8/32+",), level=1),
    Case("byte_dense fp8", dense_bytes, ("fp8",), level=3),
    Case("fp8_rows N=64", rows_to_fp8, (64,), level=1),
    Case("qk_rope_write N=64", rope, (64,), level=1),
    Case("decode_attention B=1", decode, (1,), mma=True, level=3),
    Case("decode_attention B=64", decode, (64,), mma=True, level=1),
    Case("decode_attention B=64 deterministic", decode, (64, True), mma=True, level=3),
    Case("prefill_attention 160+90/250", prefill, ((160, 160), (90, 250)), mma=True, level=1),
    Case("start_row B=64", start, (64,), level=1),
    Case("embed_rows N=90", embed, (90,), level=1),
    Case("sample_row B=64", sample, (64,), wide=False, level=1),  # 2 KB a program; 1026 entries are not aligned
    Case("sample_row B=64 fp32", sample, (64, torch.float32), wide=False),
    Case("codec_lookup F=64", lookup, (64,), level=1),
    *convolutions(
        64,
        torch.bfloat16,
        {"codec_conv in 256": 1, "codec_unit 128": 1, "codec_conv first": 2}
        | {"codec_conv out 512": 2, "codec_conv up 32": 2, "codec_unit 32": 2},
    ),
    *convolutions(1, torch.bfloat16, {"codec_conv in 512": 2, "codec_unit 128": 2}),
    *convolutions(64, torch.float32, {"codec_conv in 256": 2, "codec_unit 128": 2}),
    Case("codec_head F=64", head, (64,), level=1),
]
