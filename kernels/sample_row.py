"""The end of a row: draws its codes, moves the delay pattern on, stores the row, all in one launch.

One draw per lane and codebook, from z = its logits in fp32:

1. temperature 0: the argmax (the first on ties)
2. top-k keeps every entry that is not below the k-th largest, so ties at the boundary survive
3. w = exp((z - max z) / temperature), in fp64, in units of 2^-40, rounded down
4. top-p, on what top-k kept, keeps the smallest set of largest entries whose share of w reaches p, with its ties
5. the code is the first whose cumulative w exceeds u * (the sum of w), u from Philox at (seed, row * C + codebook)

Weights are whole numbers whose sums are exact in any order: kernel and reference draw the same codes, and a lane draws
the same alone or among others. NaN counts as the lowest logit, an infinite one as finite: there always is a code.

Then the delay pattern: codebook c runs c rows late, so in row < C codebooks c > row are forced to BOC. Once all have
begun (row >= C), EOC in codebook 0 announces the end: C - 2 more rows are drawn freely, and the last of them is `done`.

logits: [B, C * V] fp32, fp16 or bf16, V <= 2048, rows may be strided
per lane, [B], of any stride: row int32, number of this row, below R; seed int64; temperature fp32; top_k int32 in 1..V
    (V: off); top_p fp32 in (0, 1] (1: off); slot int32, may be shared by idle lanes
left: [B] int32, in and out: rows still to come after EOC, -1 before it; not read at row 0
codes: [slots, R, C] int16, out: the row at [slot, row]    out: [B, C + 1] int16: the row, and whether it was the last
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from .launch import constexpr, jit, on_triton, tl, triton
from .philox import uniform, uniform_in_kernel

UNITS = 2.0**40  # of the largest weight; 2048 times that stays below 2^53, so that fp64 holds every sum
LARGEST = torch.finfo(torch.float32).max
_UNITS, _LARGEST = constexpr(UNITS), constexpr(LARGEST)
LANE_TENSORS = ("row", "seed", "temperature", "top_k", "top_p", "left", "slot")


def sample_row(
    logits: torch.Tensor,
    row: torch.Tensor,
    seed: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    left: torch.Tensor,
    slot: torch.Tensor,
    codes: torch.Tensor,
    out: torch.Tensor,
    boc: int,
    eoc: int,
) -> None:
    lanes = (row, seed, temperature, top_k, top_p, left, slot)
    if not on_triton(logits):
        return sample_row_ref(logits, *lanes, codes, out, boc, eoc)
    B, (_, R, C) = logits.shape[0], codes.shape
    V = logits.shape[1] // C
    assert logits.shape == (B, C * V) and V <= 2048 and out.shape == (B, C + 1), (logits.shape, codes.shape, out.shape)
    assert all(lane.shape == (B,) for lane in lanes), [lane.shape for lane in lanes]
    assert logits.stride(1) == codes.stride(2) == out.stride(1) == 1, (logits.stride(), codes.stride(), out.stride())
    _kernel[(B, C)](
        logits,
        *lanes,
        codes,
        out,
        logits.stride(0),
        *(lane.stride(0) for lane in lanes),
        codes.stride(0),
        codes.stride(1),
        out.stride(0),
        V,
        R,
        C=C,
        BOC=boc,
        EOC=eoc,
        BITS=16 if logits.dtype == torch.bfloat16 else 32,
        BLOCK_V=triton.next_power_of_2(V),
        num_warps=8,
    )


# The first of the lanes may be any: where it lies must not ask for another binary in the middle of serving.
@jit(do_not_specialize_on_alignment=[f"{name}_ptr" for name in (*LANE_TENSORS, "out")])
def _kernel(
    logits_ptr,
    row_ptr,
    seed_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    left_ptr,
    slot_ptr,
    codes_ptr,
    out_ptr,
    stride_lb,
    stride_row,
    stride_seed,
    stride_temperature,
    stride_top_k,
    stride_top_p,
    stride_left,
    stride_slot,
    stride_cs,
    stride_cr,
    stride_ob,
    V,
    R,
    C: tl.constexpr,
    BOC: tl.constexpr,
    EOC: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    b, c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(row_ptr + b * stride_row)
    code = tl.full([], BOC, tl.int32)
    if c <= row:
        z = _load_logits(logits_ptr + b * stride_lb + c * V, V, BLOCK_V)
        top, best = tl.max(z, 0, return_indices=True, return_indices_tie_break_left=True)
        code = best
        temperature = tl.load(temperature_ptr + b * stride_temperature)
        if temperature != 0:
            u = uniform_in_kernel(tl.load(seed_ptr + b * stride_seed), row * C + c)
            top_k, top_p = tl.load(top_k_ptr + b * stride_top_k), tl.load(top_p_ptr + b * stride_top_p)
            weight = _weigh(z, top, temperature, top_k, top_p, V, BITS)
            limit = (u.to(tl.float64) * tl.sum(weight).to(tl.float64)).to(tl.int64)
            code = tl.sum((tl.cumsum(weight) <= limit).to(tl.int32))
            code = tl.minimum(code, V - 1)  # whatever the parameters are, a code that the embedding has

    if c == 0:  # one program of each lane keeps its state, and no other reads it
        left = tl.where(row == 0, -1, tl.load(left_ptr + b * stride_left))
        ends = (row >= C) & (left < 0) & (code == EOC)
        left = tl.where(ends, C - 2, tl.where(left > 0, left - 1, left))
        tl.store(left_ptr + b * stride_left, left)
        tl.store(out_ptr + b * stride_ob + C, (left == 0).to(tl.int16))
    slot = tl.load(slot_ptr + b * stride_slot).to(tl.int64)
    tl.store(out_ptr + b * stride_ob + c, code.to(tl.int16))
    tl.store(codes_ptr + slot * stride_cs + row * stride_cr + c, code.to(tl.int16), mask=row < R)


@jit
def _load_logits(z_ptr, V, BLOCK_V: tl.constexpr):
    """[BLOCK_V] fp32, finite, without -0; -inf behind V."""
    v = tl.arange(0, BLOCK_V)
    z = tl.load(z_ptr + v, mask=v < V, other=0.0).to(tl.float32)
    z = tl.minimum(tl.maximum(z, -_LARGEST), _LARGEST)  # of NaN and a number, maximum gives the number
    z = tl.where(z == 0, 0.0, z)
    return tl.where(v < V, z, float("-inf"))


@jit
def _weigh(z, top, temperature, top_k, top_p, V, BITS: tl.constexpr):
    """[BLOCK_V] int64: every entry's weight, 0 for what top-k and top-p take away."""
    x = (z.to(tl.float64) - top.to(tl.float64)) * (1.0 / temperature.to(tl.float64))
    weight = (tl.exp(x) * _UNITS).to(tl.int64)
    bits = z.to(tl.uint32, bitcast=True)  # made to keep z's order: a negative number's bits are turned over
    key = tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000) >> (32 - BITS)
    if top_k < V:
        least = _threshold(key, tl.full(key.shape, 1, tl.int32), top_k, BITS)
        weight = tl.where(key >= least, weight, 0)
    if top_p < 1:
        share = tl.ceil(top_p.to(tl.float64) * tl.sum(weight).to(tl.float64))
        least = _threshold(key, weight, share.to(tl.int64), BITS)
        weight = tl.where(key >= least, weight, 0)
    return weight


@jit
def _threshold(key, weight, amount, BITS: tl.constexpr):
    """The largest t for which the weights of all keys >= t come to `amount`, found bit by bit from the highest."""
    t = tl.full([], 0, tl.uint32)
    for i in range(BITS):
        higher = t | (tl.full([], 1, tl.uint32) << (BITS - 1 - i))
        t = tl.where(tl.sum(tl.where(key >= higher, weight, 0)) >= amount, higher, t)
    return t


def sample_row_ref(
    logits: torch.Tensor,
    row: torch.Tensor,
    seed: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    left: torch.Tensor,
    slot: torch.Tensor,
    codes: torch.Tensor,
    out: torch.Tensor,
    boc: int,
    eoc: int,
) -> None:
    C = codes.shape[2]
    z = torch.nan_to_num(logits.float(), nan=-LARGEST).view(len(logits), C, -1)
    lanes = (row, seed, temperature, top_k, top_p, left, slot)
    # One lane after the other: the sort and the exponentials are what costs, and each lane needs only its own.
    for b, (number, key, *parameters, rows_left, n) in enumerate(zip(*(lane.tolist() for lane in lanes), strict=True)):
        drawn = _draw(z[b], _draws(key, number // 64, C)[number % 64], *parameters)
        drawn[number + 1 :] = boc
        rows_left = -1 if number == 0 else rows_left
        if number >= C and rows_left < 0 and drawn[0] == eoc:
            rows_left = C - 2
        elif rows_left > 0:
            rows_left -= 1
        left[b] = rows_left
        out[b, :C] = codes[n, number] = drawn
        out[b, C] = rows_left == 0


def _draw(z: torch.Tensor, u: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """z: [C, V] fp32, finite; u: [C, 1] fp64. Returns [C] int64."""
    if temperature == 0:
        return z.argmax(-1)
    V, top = z.shape[1], z.amax(-1, keepdim=True).double()

    def weigh(z: torch.Tensor) -> torch.Tensor:
        return z.double().sub_(top).mul_(1 / temperature).exp_().mul_(UNITS).floor_()

    weight = weigh(z)
    if top_k < V or top_p < 1:
        rising = torch.from_numpy(np.sort(z.cpu().numpy())).to(z.device)  # many times as fast as torch.sort on a CPU
        least = rising[:, V - top_k, None]
        if top_p < 1:
            share = weigh(rising).masked_fill_(rising < least, 0).cumsum(-1)
            total = share[:, -1:]
            dropped = (total - share >= top_p * total).sum(-1, keepdim=True)
            least = torch.maximum(least, rising.gather(1, dropped))
        weight.masked_fill_(z < least, 0)
    cumulative = weight.cumsum(-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]


@lru_cache(maxsize=1024)
def _draws(seed: int, block: int, C: int) -> torch.Tensor:
    """[64, C, 1] fp64: the draws of rows 64 * block and on."""
    rows = torch.arange(64 * block, 64 * (block + 1))
    return uniform(seed, rows[:, None] * C + torch.arange(C)).double()[..., None]
