"""A weight of one byte as a dense matrix: for products of many rows, which cuBLAS computes, and for whoever wants W.

W[o, i] = code[o, i] * scale[o, i // group] + offset[o, i // group]    in fp32, rounded once
"""

from __future__ import annotations

import torch

from .byte_code import Bytes, weights
from .launch import jit, on_triton, tl, triton

_STEPS = 4  # of 512 columns, for each of a program's 4 warps


def byte_dense(weight: Bytes, dtype: torch.dtype) -> torch.Tensor:
    """[ROWS, IN] of dtype fp32, fp16 or bf16, on the weight's device."""
    if not on_triton(weight.codes):
        return byte_dense_ref(weight, dtype)
    ROWS, IN = weight.codes.shape[0], weight.columns
    w = torch.empty(ROWS, IN, device=weight.codes.device, dtype=dtype)
    codes, scale, offset = weight.pointers()
    _dense_kernel[(triton.cdiv(ROWS, 4), triton.cdiv(IN, _STEPS * 512))](
        *(codes, scale, offset, w, codes.stride(0), scale.stride(0), ROWS, IN, weight.unit, weight.shift),
        CODE=weight.code,
        SCALES=weight.scales,
        STEPS=_STEPS,
        num_warps=4,
    )
    return w


@jit
def _dense_kernel(
    w_ptr, s_ptr, z_ptr, y_ptr, stride_wo, stride_so, ROWS, IN, unit, shift,
    CODE: tl.constexpr, SCALES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A row for each of 4 warps."""
    o = tl.program_id(0) * 4 + tl.arange(0, 4)[None, :, None, None]
    if SCALES == "row":
        unit *= tl.load(s_ptr + o, mask=o < ROWS, other=0.0)[:, :, :, :, None]
    for step in tl.static_range(STEPS):
        first = (tl.program_id(1) * STEPS + step) * 512 + 0 * o
        w = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, o < ROWS, IN, shift, CODE, SCALES, 32)
        i = first + tl.arange(0, 512)[None, None, None, :]
        w = tl.reshape((w * unit).to(y_ptr.dtype.element_ty), (1, 4, 1, 512))
        tl.store(y_ptr + o.to(tl.int64) * IN + i, w, mask=(o < ROWS) & (i < IN))


def byte_dense_ref(weight: Bytes, dtype: torch.dtype) -> torch.Tensor:
    codes = weight.codes[:, : weight.columns]
    values = codes.view(torch.float8_e4m3fn).float() if weight.float8 else codes.float() - 128
    if not weight.group:
        return (values * weight.scale[:, None]).to(dtype)
    group = torch.arange(weight.columns, device=codes.device) >> weight.shift
    values *= (weight.scale.float() * weight.unit)[:, group]
    if weight.offset is not None:
        values += (weight.offset.float() * weight.unit)[:, group]
    return values.to(dtype)
