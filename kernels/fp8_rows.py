"""Rows of x in fp8 (e4m3), each with a scale of its own, for the fp8 matrix units; with the RMSNorm before it.

    h[n, i] = x[n, i] * rsqrt(mean_i(x[n, :]^2) + eps) * norm[i]        with `norm`, else x
    scale[n] = max_i |h[n, i]| / 448        q[n, i] = h[n, i] / scale[n], rounded to e4m3

x: [N, IN] fp16 or bf16, rows may be strided    norm: [IN]    ->    q: [N, columns] float8_e4m3fn, columns >= IN, zeros
beyond IN; scale: [N, 1] fp32
"""

from __future__ import annotations

import torch

from .launch import jit, on_triton, tl, triton
from .rms_norm import rms_norm_ref

LARGEST = 448.0  # of e4m3


def fp8_rows(
    x: torch.Tensor, columns: int, norm: torch.Tensor | None = None, eps: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    if not on_triton(x):
        return fp8_rows_ref(x, columns, norm, eps)
    N, IN = x.shape
    assert columns >= IN and x.stride(1) == 1, (x.shape, x.stride(), columns)
    assert norm is None or (norm.shape == (IN,) and norm.stride(0) == 1), (norm.shape, norm.stride(), IN)
    q = torch.empty(N, columns, device=x.device, dtype=torch.float8_e4m3fn)
    scale = torch.empty(N, 1, device=x.device)
    _fp8_rows_kernel[(N,)](
        *(x, x if norm is None else norm, q.view(torch.uint8), scale, x.stride(0), columns, IN, eps),
        HAS_NORM=norm is not None,
        BLOCK_I=triton.next_power_of_2(columns),
        num_warps=4 if columns <= 4096 else 8,
    )
    return q, scale


@jit
def _fp8_rows_kernel(
    x_ptr, g_ptr, q_ptr, s_ptr, stride_xn, columns, IN, eps, HAS_NORM: tl.constexpr, BLOCK_I: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    h = tl.load(x_ptr + n * stride_xn + i, mask=i < IN, other=0.0).to(tl.float32)
    if HAS_NORM:
        h *= tl.rsqrt(tl.sum(h * h) / IN + eps) * tl.load(g_ptr + i, mask=i < IN, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(h)), 1e-30) / 448.0
    tl.store(q_ptr + n * columns + i, _e4m3(h / scale), mask=i < columns)
    tl.store(s_ptr + n, scale)


@jit
def _e4m3(x):
    """fp32, at most 448 by absolute value or hardly more -> the bits of the nearest e4m3, of two the even one.

    By hand, so that all GPUs and the interpreter round alike. e4m3 has 3 of fp32's 23 bits of mantissa and a bias of 7
    instead of 127; from 2^-6 down it counts in steps of 2^-9, and adding 2^23 rounds to whole steps."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0)
    normal = size.to(tl.int32, bitcast=True)
    normal = ((normal + 0x7FFFF + ((normal >> 20) & 1)) >> 20) - 120 * 8
    steps = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) & 15
    return (tl.where(size < 0.015625, steps, normal) | ((bits >> 24) & 128)).to(tl.uint8)


def fp8_rows_ref(
    x: torch.Tensor, columns: int, norm: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    h = x.float() if norm is None else rms_norm_ref(x.float(), norm.float(), eps)
    scale = h.abs().amax(1, keepdim=True).clamp_min(1e-30) / LARGEST
    q = torch.zeros(len(x), columns, device=x.device, dtype=torch.float8_e4m3fn)
    q[:, : x.shape[1]] = (h / scale).to(torch.float8_e4m3fn)
    return q, scale
