"""SwiGLU: y = silu(gate) * up, gate and up side by side.

    y[n, f] = x[n, f] * sigmoid(x[n, f]) * x[n, F + f]

gate_up = x: [N, 2 F] (gate first), rows may be strided    ->    y: [N, F]

The kernel computes in fp32 and rounds once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .launch import jit, on_triton, tl, triton


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    if not on_triton(gate_up):
        return swiglu_ref(gate_up)
    N, F2 = gate_up.shape
    assert F2 % 2 == 0 and gate_up.stride(1) == 1, (gate_up.shape, gate_up.stride())
    y = torch.empty(N, F2 // 2, device=gate_up.device, dtype=gate_up.dtype)
    block = min(1024, triton.next_power_of_2(F2 // 2))  # 128 threads of 8 values
    _kernel[(N, triton.cdiv(F2 // 2, block))](gate_up, y, gate_up.stride(0), F2 // 2, BLOCK_F=block, num_warps=4)
    return y


@jit
def _kernel(x_ptr, y_ptr, stride_xn, F, BLOCK_F: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = f < F
    gate = tl.load(x_ptr + n * stride_xn + f, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + n * stride_xn + F + f, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + n * F + f, (silu(gate) * up).to(y_ptr.dtype.element_ty), mask=mask)


@jit
def silu(x):
    """x: fp32. Far below zero exp overflows to inf, and x / inf is the right zero."""
    return x / (1 + tl.exp(-x))


def swiglu_ref(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
