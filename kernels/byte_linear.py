"""y = x W^T with weights of one byte, int8 or fp8: which kernel for how many rows of x.

One row: byte_gemv.py. 2 to 16: byte_skinny.py. More: byte_wide.py, and from some number on a dense copy of W and
cuBLAS, because by then the product's arithmetic takes longer than making the copy. `path` says from which on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .byte_code import Bytes
from .byte_dense import byte_dense
from .byte_gemv import byte_gemv
from .byte_skinny import byte_skinny
from .byte_tile import byte_tile
from .byte_wide import byte_wide
from .launch import on_triton
from .linear_tile import SKINNY, depth
from .rms_norm import rms_norm, rms_norm_ref
from .swiglu import swiglu as swiglu_op
from .swiglu import swiglu_ref


def path(N: int, dtype: torch.dtype, deterministic: bool) -> str:
    """What multiplies N rows of x.

    A dense copy of W in 16 bits is written and read: 4 bytes a weight at 4.3 TB/s, 0.93 ps. An H200's cuBLAS does the
    2 N operations of a weight at 790 TFLOP/s, 2.5 fs a row; the product that decodes W is taken to reach 0.6 of that,
    4.2 fs. So the copy is paid for by 0.93 ps / 1.7 fs = 550 rows. fp32, which has no matrix cores of its own and is
    for checking, always takes the copy."""
    if deterministic or 1 < N <= SKINNY:
        return "skinny"
    if N == 1:
        return "gemv"
    return "wide" if N <= 512 and dtype != torch.float32 else "dense"


def byte_linear(
    x: torch.Tensor,
    weight: Bytes,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    swiglu: bool = False,
    deterministic: bool = False,
) -> torch.Tensor:
    """x: [N, IN] fp32/fp16/bf16, rows may be strided    ->    y: [N, OUT] in x.dtype; the rest as `linear` has it."""
    if not on_triton(x):
        return byte_linear_ref(x, weight, norm=norm, eps=eps, residual=residual, swiglu=swiglu)
    N, IN = x.shape
    OUT = weight.codes.shape[0] // (1 + swiglu)
    assert IN == weight.columns and x.stride(1) == 1, (x.shape, x.stride(), weight.columns)
    assert norm is None or (norm.shape == (IN,) and norm.stride(0) == 1), (norm.shape, norm.stride(), IN)
    assert residual is None or (residual.shape == (N, OUT) and residual.stride(1) == 1), (residual.shape, N, OUT)
    assert residual is None or residual is not x, "programs read all of x while others write"
    chosen = path(N, x.dtype, deterministic)
    if chosen == "dense":
        h = x if norm is None else rms_norm(x, norm, eps)
        return after(h @ byte_dense(weight, x.dtype).t(), residual, swiglu)
    y = torch.empty(N, OUT, device=x.device, dtype=x.dtype) if residual is None else residual
    if chosen == "wide":
        h = x if norm is None else rms_norm(x, norm, eps)
        byte_wide(h, weight, y, residual=residual is not None, swiglu=swiglu)
        return y
    rows = SKINNY if deterministic else depth(N)
    tile = byte_tile(rows, OUT, swiglu, norm, x, weight.arrays)
    adds = residual is not None
    if chosen == "gemv":
        byte_gemv(x, weight, y, tile, norm=norm, eps=eps, residual=adds, swiglu=swiglu)
    else:
        byte_skinny(x, weight, y, tile, rows, norm=norm, eps=eps, residual=adds, swiglu=swiglu)
    return y


def after(y: torch.Tensor, residual: torch.Tensor | None, swiglu: bool) -> torch.Tensor:
    """What follows a product that another library computed."""
    y = swiglu_op(y) if swiglu else y
    return y if residual is None else residual.add_(y)


def byte_linear_ref(
    x: torch.Tensor,
    weight: Bytes,
    *,
    norm: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    swiglu: bool,
) -> torch.Tensor:
    """With W dense, in fp32, rounded once."""
    h = x.float() if norm is None else rms_norm_ref(x.float(), norm.float(), eps)
    y = F.linear(h, byte_dense(weight, torch.float32))
    y = (swiglu_ref(y) if swiglu else y).to(x.dtype)
    return y if residual is None else residual.add_(y)
