"""A residual unit of the streaming codec in one launch, for widths whose intermediate stays on the chip.

    y[i]   = b1 + sum_k snake1(window[i - (6 - k) d]) @ W1[k],    d = tail / 6
    out[i] = b2 + window[i - 3 d] + snake2(y[i]) @ W2

window: see codec_window.py    W1: [7, C, C]    W2: [C, C]    b1, b2, alphas and reciprocals: [C] fp32
->  out: [F * rate, C] fp32, and the window's tails for the next pass. Rows of idle frames are not written.

Operands are those of codec_conv.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .codec_conv import codec_conv_ref, split_dot
from .codec_window import Window, jit_once, row_pointers, rows_of, save_tail
from .launch import multiprocessors, on_triton, tl, triton
from .snake import snake_of

WIDEST = 128  # channels: 64 rows of them and both products' operands fit into the registers


class Unit(NamedTuple):
    """The weights of a residual unit."""

    snake1: tuple[torch.Tensor, torch.Tensor]  # alpha, reciprocal
    conv1: torch.Tensor  # [7, C, C]
    bias1: torch.Tensor
    snake2: tuple[torch.Tensor, torch.Tensor]
    conv2: torch.Tensor  # [1, C, C]
    bias2: torch.Tensor


def codec_unit(window: Window, unit: Unit, out: torch.Tensor) -> torch.Tensor:
    if not on_triton(window.x):
        return codec_unit_ref(window, unit, out)
    M, C = window.x.shape
    assert unit.conv1.shape == (7, C, C) and unit.conv2.shape == (1, C, C) and C <= WIDEST, (unit.conv1.shape, C)
    assert unit.conv1.is_contiguous() and unit.conv2.is_contiguous() and out.is_contiguous(), C
    assert out.shape == (M, C) and out.dtype == torch.float32 and window.tail % 6 == 0, (out.shape, window.tail)
    # 64 rows to a program. But few rows of the widest are spread over more programs, as far as there are processors;
    # and fp32 weights take twice the shared memory, of which small GPUs give a program 99 KiB.
    few, large = M <= 32 * multiprocessors(out.device), unit.conv2.dtype == torch.float32
    BLOCK_M = 32 if C > 64 and (few or large) else 64
    tiles_m = triton.cdiv(M, BLOCK_M)
    BLOCK_C = max(16, triton.next_power_of_2(C))
    _kernel[(tiles_m + len(window.frames),)](
        *window.arguments,
        *unit.snake1,
        unit.conv1,
        unit.bias1,
        *unit.snake2,
        unit.conv2,
        unit.bias2,
        out,
        tiles_m,
        C=C,
        BLOCK_M=BLOCK_M,
        BLOCK_C=BLOCK_C,
        BLOCK_K=min(64, BLOCK_C),
        num_warps=8 if C > 64 else 4,
        num_stages=3,
    )
    return out


@jit_once
def _kernel(
    x_ptr, tails_ptr, frames_ptr, F, seats, rate, delay, tail, alpha1_ptr, reciprocal1_ptr, w1_ptr, b1_ptr,
    alpha2_ptr, reciprocal2_ptr, w2_ptr, b2_ptr, y_ptr, tiles_m,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, BLOCK_C)
    m = tl.program_id(0)
    if m >= tiles_m:
        save_tail(x_ptr, tails_ptr, frames_ptr, m - tiles_m, n, seats, rate, tail, C)
        return
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    j, t, stop, side = rows_of(frames_ptr, row, F, seats, rate, delay)
    if tl.max(stop) == 0:
        return
    d = tail // 6
    PARTS: tl.constexpr = BLOCK_C // BLOCK_K
    y = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for i in range(7 * PARTS):
        tap = i // PARTS
        c = (i % PARTS) * BLOCK_K + tl.arange(0, BLOCK_K)
        pointers, inside = row_pointers(x_ptr, tails_ptr, row, j, t, stop, side, tail, (6 - tap) * d, C)
        x = tl.load(pointers[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        alpha = tl.load(alpha1_ptr + c, mask=c < C, other=0.0)
        x = snake_of(x, alpha[None, :], tl.load(reciprocal1_ptr + c, mask=c < C, other=0.0)[None, :])
        w_mask = (c < C)[:, None] & (n < C)[None, :]
        w = tl.load(w1_ptr + (tap * C + c)[:, None] * C + n[None, :], mask=w_mask, other=0.0)
        y = split_dot(x, w, y)
    y += tl.load(b1_ptr + n, mask=n < C, other=0.0)[None, :]
    alpha = tl.load(alpha2_ptr + n, mask=n < C, other=0.0)
    y = snake_of(y, alpha[None, :], tl.load(reciprocal2_ptr + n, mask=n < C, other=0.0)[None, :])
    k = tl.arange(0, BLOCK_C)
    w = tl.load(w2_ptr + k[:, None] * C + n[None, :], mask=(k < C)[:, None] & (n < C)[None, :], other=0.0)
    pointers, inside = row_pointers(x_ptr, tails_ptr, row, j, t, stop, side, tail, 3 * d, C)
    skip = tl.load(pointers[:, None] + n[None, :], mask=inside[:, None] & (n < C)[None, :], other=0.0)
    skip += tl.load(b2_ptr + n, mask=n < C, other=0.0)[None, :]
    y = split_dot(y, w, skip)
    tl.store(y_ptr + row[:, None] * C + n[None, :], y, mask=(stop > 0)[:, None] & (n < C)[None, :])


def codec_unit_ref(window: Window, unit: Unit, out: torch.Tensor) -> torch.Tensor:
    middle = codec_conv_ref(window, unit.conv1, unit.bias1, torch.empty_like(out), unit.snake1)
    return codec_conv_ref(without_tail(window, middle), unit.conv2, unit.bias2, out, unit.snake2, skip=window)


def without_tail(window: Window, middle: torch.Tensor) -> Window:
    """What the first convolution of a unit gives, as the second one reads it: half a window later."""
    return Window(middle, window.tails[:, :, :0], window.frames, window.rate, window.delay + window.tail // 2)
