"""NF4: 4-bit codes into a table of 16 normal quantiles, a scale for each 64 weights, as bitsandbytes stores them.

    weight: uint8 [N * K / 2, 1], two codes a byte, the first in the high half
    weight.absmax: [N * K / 64] fp32, the largest magnitude of each 64 weights
    weight.quant_map: [16] fp32, the table
    weight.quant_state.bitsandbytes__nf4: JSON as uint8: quant_type, blocksize, dtype, shape, ...

    W[i] = quant_map[code[i]] * absmax[i // 64]

Nested ("double quant"), absmax is itself uint8, with weight.nested_absmax [N * K / 64 / 256] and
weight.nested_quant_map [256] fp32, and an offset in the JSON:

    absmax[b] = nested_quant_map[code[b]] * nested_absmax[b // 256] + nested_offset

Source of NF4: QLoRA (arXiv 2305.14314); of the nested table: dynamic tree quantization (arXiv 1511.04561).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from .grouped import Grouped

BLOCK, NESTED_BLOCK = 64, 256
STATE = "weight.quant_state.bitsandbytes__nf4"
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@cache
def nested_levels() -> torch.Tensor:
    """[256] fp32, ascending: 0, 1, and for each e in 0..6 the middles of 2^e steps of 0.1..1, both signs, times
    10^(e-6)."""
    levels = [0.0, 1.0]
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2**e + 1, dtype=torch.float32)
        middles = (10.0 ** (e - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        levels += middles + [-middle for middle in middles]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def encode(
    weight: torch.Tensor, *, nested: bool = False, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """weight: [N, K], finite; nested: absmax in 8 bits; dtype: what readers shall compute in, a note in the file.

    Returns the tensors above by name, each weight by its nearest level. ValueError: K is no multiple of 64.
    """
    N, K = weight.shape
    if K % BLOCK:
        raise ValueError(f"A row of {K} weights cannot be stored as NF4, whose blocks hold {BLOCK}.")
    levels = torch.tensor(LEVELS, device=weight.device)
    codes, absmax = _nearest(weight.float().reshape(-1, BLOCK), levels)
    codes = codes.reshape(-1, 2)
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [N, K],
    }
    tensors = {
        "weight": codes[:, :1] << 4 | codes[:, 1:],
        "weight.absmax": absmax,
        "weight.quant_map": levels,
    }
    if nested:
        offset = absmax.mean()
        whole = -len(absmax) % NESTED_BLOCK  # the last block may be short
        blocks = torch.nn.functional.pad(absmax - offset, (0, whole)).view(-1, NESTED_BLOCK)
        table = nested_levels().to(weight.device)
        codes, tensors["weight.nested_absmax"] = _nearest(blocks, table)
        tensors["weight.absmax"] = codes.view(-1)[: len(absmax)].clone()
        tensors["weight.nested_quant_map"] = table.clone()
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset.item()}
    tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Grouped:
    """tensors: by name as above, nested or not, any block size that divides a row; shape: (N, K).

    Returns codes [N, K] with the file's table as levels. ValueError: tensors that are missing or do not fit.
    """
    try:
        N, K = shape
        state = json.loads(bytes(tensors[STATE].tolist()))
        kind, block, stored = state["quant_type"], int(state["blocksize"]), tuple(state["shape"])
        packed = tensors["weight"].flatten().view(torch.uint8)  # some files call the same bytes bf16
        absmax = _absmax(tensors, state)
        levels = tensors["weight.quant_map"].float()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"These NF4 tensors are not as bitsandbytes writes them: {error!r}.") from None
    if kind != "nf4" or stored != (N, K) or levels.shape != (16,) or packed.numel() * 2 != N * K:
        raise ValueError(
            f"NF4 weights of shape {(N, K)} want {N * K // 2} bytes and 16 levels; these say {kind}, shape {stored}, "
            f"{packed.numel()} bytes, {tuple(levels.shape)} levels."
        )
    if block <= 0 or K % block or absmax.numel() * block != N * K:
        raise ValueError(
            f"NF4 blocks must divide a row, here of {K} weights; these hold {block}, with {absmax.numel()} scales."
        )
    codes = torch.stack([packed >> 4, packed & 15], -1).view(N, K)
    return Grouped(codes, absmax.view(N, K // block), levels=levels)


def _nearest(blocks: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """blocks: [B, n]; levels: ascending in -1..1. The nearest level of each number over the largest magnitude of its
    block, the lower one of two: codes uint8 [B, n], and those magnitudes [B]."""
    largest = blocks.abs().amax(1)
    scaled = blocks * (1 / largest.clamp(min=1e-38))[:, None]
    codes, above = torch.zeros_like(blocks, dtype=torch.uint8), torch.empty_like(blocks, dtype=torch.bool)
    for middle in ((levels[:-1] + levels[1:]) / 2).tolist():  # for 16 levels, faster than a search for each number
        codes += torch.gt(scaled, middle, out=above).view(torch.uint8)
    return codes, largest


def _absmax(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> torch.Tensor:
    """The scales, one for each block of weights: fp32."""
    absmax = tensors["weight.absmax"]
    if "nested_blocksize" not in state:
        return absmax.float()
    scale, levels = tensors["weight.nested_absmax"].float(), tensors["weight.nested_quant_map"].float()
    block = int(state["nested_blocksize"])
    if absmax.dtype != torch.uint8 or levels.shape != (256,) or block <= 0 or len(scale) != -(-len(absmax) // block):
        raise ValueError(f"{len(absmax)} nested scales do not fit {len(scale)} blocks of {block}")
    return levels[absmax.int()] * scale.repeat_interleave(block)[: len(absmax)] + float(state["nested_offset"])
