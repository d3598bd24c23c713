"""The end of the streaming codec: Snake and a convolution of 7 taps to one channel.

    y[i] = bias + sum_{k, c} snake(window[i - (6 - k), c]) * weight[k, c]

window: see codec_window.py, tail 6    weight: [7, C] fp32    bias: [1] fp32    alpha, reciprocal: [C] fp32
->  out: [F * rate] fp32, and the window's tails for the next pass. Rows of idle frames are not written.

A single output channel leaves nothing to a matrix unit: it is computed in fp32.
"""

from __future__ import annotations

import torch

from .codec_window import Window, jit_once, live_ref, row_pointers, rows_of, save_tail, save_tail_ref, window_ref
from .launch import on_triton, tl, triton
from .snake import snake, snake_of

BLOCK_M = 64


def codec_head(
    window: Window,
    activation: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    if not on_triton(window.x):
        return codec_head_ref(window, activation, weight, bias, out)
    M, C = window.x.shape
    assert weight.shape == (7, C) and weight.is_contiguous() and bias.shape == (1,), (weight.shape, bias.shape)
    assert out.shape == (M,) and out.is_contiguous() and window.tail == 6, (out.shape, window.tail)
    tiles_m = triton.cdiv(M, BLOCK_M)
    _kernel[(tiles_m + len(window.frames),)](
        *window.arguments,
        *activation,
        weight,
        bias,
        out,
        tiles_m,
        C=C,
        BLOCK_M=BLOCK_M,
        BLOCK_C=triton.next_power_of_2(C),
        num_warps=4,
    )
    return out


@jit_once
def _kernel(
    x_ptr, tails_ptr, frames_ptr, F, seats, rate, delay, tail, alpha_ptr, reciprocal_ptr, w_ptr, b_ptr, y_ptr, tiles_m,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BLOCK_C)
    m = tl.program_id(0)
    if m >= tiles_m:
        save_tail(x_ptr, tails_ptr, frames_ptr, m - tiles_m, c, seats, rate, tail, C)
        return
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    j, t, stop, side = rows_of(frames_ptr, row, F, seats, rate, delay)
    if tl.max(stop) == 0:
        return
    alpha = tl.load(alpha_ptr + c, mask=c < C, other=0.0)[None, :]
    reciprocal = tl.load(reciprocal_ptr + c, mask=c < C, other=0.0)[None, :]
    products = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for tap in tl.static_range(7):
        pointers, inside = row_pointers(x_ptr, tails_ptr, row, j, t, stop, side, tail, 6 - tap, C)
        x = tl.load(pointers[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        products += snake_of(x, alpha, reciprocal) * tl.load(w_ptr + tap * C + c, mask=c < C, other=0.0)[None, :]
    tl.store(y_ptr + row, tl.sum(products, 1) + tl.load(b_ptr), mask=stop > 0)


def codec_head_ref(
    window: Window,
    activation: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    y = bias + sum((snake(window_ref(window, 6 - k), *activation) @ weight[k] for k in range(7)), torch.zeros(()))
    save_tail_ref(window)
    live = live_ref(window)
    out[live] = y[live]
    return out
