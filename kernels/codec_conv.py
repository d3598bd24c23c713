"""A causal convolution of the streaming codec: Snake, taps, bias and skip in one launch.

    y[i, n] = bias[n] + sum_{k, c} snake(window[i - back_k, c]) * weight[k, c, n]  (+ skip[i - 3d, n])
    back_k = (K - 1 - k) * d,    d = tail / (K - 1)

window, skip: see codec_window.py    weight: [K, C, N]    bias: [N] fp32    alpha, reciprocal: [C] fp32
->  out: [F * rate, N] fp32, and the window's tails for the next pass. Rows of idle frames are not written.

The same launch serves the first convolution (K = 7, no Snake), both halves of a wide residual unit (K = 7; K = 1 with
the skip) and the transposed convolution of stride s: two taps, N = s * Cout, whose rows of N are s samples in a row.

Operands: a bf16 weight meets the activations split into two bf16 halves, whose products are exact: two matrix
instructions instead of one, and 16 bits of each activation. An fp32 weight runs in TF32, which keeps 11.
"""

from __future__ import annotations

import torch

from .codec_window import Window, jit_once, live_ref, row_pointers, rows_of, save_tail, save_tail_ref, window_ref
from .launch import dot, jit, multiprocessors, on_triton, tl, triton
from .snake import snake, snake_of


def codec_conv(
    window: Window,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    activation: tuple[torch.Tensor, torch.Tensor] | None = None,
    skip: Window | None = None,
) -> torch.Tensor:
    if not on_triton(window.x):
        return codec_conv_ref(window, weight, bias, out, activation, skip)
    K, C, N = weight.shape
    M = len(window.x)
    assert window.x.shape[1] == C and weight.is_contiguous() and bias.shape == (N,), (window.x.shape, weight.shape)
    assert out.shape == (M, N) and out.is_contiguous() and out.dtype == torch.float32, (out.shape, M, N)
    assert window.tail % max(K - 1, 1) == 0 and (skip is None or skip.x.shape == (M, N)), (window.tail, K)
    alpha, reciprocal = activation or (bias, bias)  # not read without Snake
    skipped = skip or window  # not read without a skip
    BLOCK_M, BLOCK_N, BLOCK_K, stages = tiles(M, N, C, multiprocessors(out.device))
    tiles_m = triton.cdiv(M, BLOCK_M)
    savers = len(window.frames) if window.tail else 0
    _kernel[(triton.cdiv(N, BLOCK_N), tiles_m + savers)](
        *window.arguments,
        weight,
        bias,
        alpha,
        reciprocal,
        skipped.x,
        skipped.tails,
        skipped.tail,
        out,
        tiles_m,
        window.tail // max(K - 1, 1),
        K=K,
        C=C,
        N=N,
        SNAKE=activation is not None,
        SKIP=skip is not None,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        num_warps=4,
        num_stages=stages,
    )
    return out


def tiles(M: int, N: int, C: int, multiprocessors: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, stages. Few rows: the weights are what takes time, so many programs read them, each
    with long lines in flight. Many rows: 64 x 64 products, as large as fp32 activations leave registers for."""
    BLOCK_K = max(16, min(64, triton.next_power_of_2(C)))
    BLOCK_N = max(16, min(64, N & -N))  # the largest that divides N
    if M <= 16:
        return 16, min(BLOCK_N, 32), BLOCK_K * (2 if C % 128 == 0 else 1), 4
    if triton.cdiv(M, 64) * triton.cdiv(N, BLOCK_N) < 0.75 * multiprocessors:
        return 64, min(BLOCK_N, 32), BLOCK_K, 4
    return 64, BLOCK_N, BLOCK_K, 3


@jit
def split_dot(x, w, acc):
    """acc + x @ w: fp32 activations times bf16 or fp32 weights."""
    if w.dtype == tl.bfloat16:
        high = x.to(tl.bfloat16)
        acc = dot((x - high.to(tl.float32)).to(tl.bfloat16), w, acc, "tf32")
        return dot(high, w, acc, "tf32")
    else:
        return dot(x, w, acc, "tf32")


@jit_once
def _kernel(
    x_ptr, tails_ptr, frames_ptr, F, seats, rate, delay, tail, w_ptr, b_ptr, alpha_ptr, reciprocal_ptr,
    skip_ptr, skip_tails_ptr, skip_tail, y_ptr, tiles_m, dilation,
    K: tl.constexpr, C: tl.constexpr, N: tl.constexpr, SNAKE: tl.constexpr, SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1)
    if m >= tiles_m:
        save_tail(x_ptr, tails_ptr, frames_ptr, m - tiles_m, n, seats, rate, tail, C)
        return
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    j, t, stop, side = rows_of(frames_ptr, row, F, seats, rate, delay)
    if tl.max(stop) == 0:
        return
    PARTS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(K * PARTS):
        tap = i // PARTS
        c = (i % PARTS) * BLOCK_K + tl.arange(0, BLOCK_K)
        pointers, inside = row_pointers(x_ptr, tails_ptr, row, j, t, stop, side, tail, (K - 1 - tap) * dilation, C)
        x = tl.load(pointers[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        if SNAKE:
            alpha = tl.load(alpha_ptr + c, mask=c < C, other=0.0)
            x = snake_of(x, alpha[None, :], tl.load(reciprocal_ptr + c, mask=c < C, other=0.0)[None, :])
        w_mask = (c < C)[:, None] & (n < N)[None, :]
        w = tl.load(w_ptr + (tap * C + c)[:, None] * N + n[None, :], mask=w_mask, other=0.0)
        acc = split_dot(x, w, acc)
    acc += tl.load(b_ptr + n, mask=n < N, other=0.0)[None, :]
    if SKIP:
        pointers, inside = row_pointers(
            skip_ptr, skip_tails_ptr, row, j, t + skip_tail // 2, stop, side, skip_tail, skip_tail // 2, N
        )
        acc += tl.load(pointers[:, None] + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0)
    tl.store(y_ptr + row[:, None] * N + n[None, :], acc, mask=(stop > 0)[:, None] & (n < N)[None, :])


def codec_conv_ref(
    window: Window,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    activation: tuple[torch.Tensor, torch.Tensor] | None = None,
    skip: Window | None = None,
) -> torch.Tensor:
    K = len(weight)
    y = bias.expand(out.shape)
    for k in range(K):
        x = window_ref(window, (K - 1 - k) * (window.tail // max(K - 1, 1)))
        y = y + (snake(x, *activation) if activation else x) @ weight[k].float()
    if skip is not None:
        y = y + window_ref(skip, skip.tail // 2)
    save_tail_ref(window)
    live = live_ref(window)
    out[live] = y[live]
    return out
