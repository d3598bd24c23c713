"""y = x W^T on the CPU, with W laid out for it once.

x: [N, in] fp32 or bf16    W: [out, in] in x.dtype    ->    y: [N, out] in x.dtype

fp32: column-major W; one row goes to torch's GEMV, several to oneDNN. bf16: oneDNN's own blocked layout, which only
oneDNN reads. The oneDNN ops are those that torch.compile emits for linear layers; where this torch or this processor
lacks them, F.linear serves. C1, C4 and the share of bandwidth that bench/ prints tell what that is worth.
"""

from functools import cache

import torch
import torch.nn.functional as F

from .huge_pages import use_huge_pages

# For each row of x, oneDNN's loop prefetches one of the four cache lines that it reads next. Weights that come from
# memory therefore want four rows; of those that the caches hold, four cost more than one.
PREFETCHING_ROWS = 4
CACHED = 2 << 20  # bytes of a weight


@cache
def _onednn(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())


def arrange(weight: torch.Tensor) -> torch.Tensor:
    """weight: [out, in] on the CPU -> the same values in the layout that `cpu_linear` wants; it may be opaque."""
    if weight.dtype == torch.float32:
        weight = weight.t().contiguous().t()
    elif _onednn(weight.dtype):
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, 128)  # rows it is chosen for; it suits one, too
    address = torch.ops.mkldnn.data_ptr(weight) if weight.is_mkldnn else weight.data_ptr()
    use_huge_pages(address, weight.numel() * weight.itemsize)
    return weight


def cpu_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    N = len(x)
    if weight.is_mkldnn:
        if N < PREFETCHING_ROWS and weight.numel() * weight.itemsize > CACHED:
            copies = torch.cat((x,) * -(-PREFETCHING_ROWS // N))
            return torch.ops.mkldnn._linear_pointwise(copies, weight, None, "none", [], "")[:N]
    elif N == 1 or not _onednn(weight.dtype):
        return F.linear(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
