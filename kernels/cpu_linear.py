"""y = x W^T on the CPU, with W laid out for it once.

x: [N, in] fp32 or bf16    W: [out, in] in x.dtype    ->    y: [N, out] in x.dtype

fp32: column-major W; one row goes to torch's GEMV, several to oneDNN. bf16: oneDNN's own blocked layout, which only
oneDNN reads. C1 and C4 of bench/ tell what that is worth. The oneDNN ops are those that torch.compile emits for linear
layers; where this torch or this processor lacks them, F.linear serves.
"""

from functools import cache

import torch
import torch.nn.functional as F


@cache
def _onednn(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())


def arrange(weight: torch.Tensor) -> torch.Tensor:
    """weight: [out, in] on the CPU -> the same values in the layout that `cpu_linear` wants; it may be opaque."""
    if weight.dtype == torch.float32:
        return weight.t().contiguous().t()
    if _onednn(weight.dtype):
        return torch.ops.mkldnn._reorder_linear_weight(weight, 128)  # rows the layout is chosen for; it suits one, too
    return weight


def cpu_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if weight.is_mkldnn or (len(x) > 1 and _onednn(weight.dtype)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)
