"""AWQ's 4 bits: a step and a zero point for each group of a row's inputs, stored in the GEMM layout.

W[n, k] = (q[n, k] - z[n, k // group]) * s[n, k // group],    q and z in 0..15

qweight  int32 [K, N / 8]     N outputs, K inputs: eight outputs of one input in a word
qzeros   int32 [G, N / 8]     G groups of inputs; eight outputs in a word, likewise
scales   fp16  [G, N]
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .grouped import Grouped

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # bits 4i to 4i + 3 of a word hold its output ORDER[i]
_BYTES = tuple(zip(ORDER[0::2], ORDER[1::2], strict=True))
_SMALLEST_RANGE = 1e-5  # of a group: its step must not vanish in fp16


def steps(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """groups: [..., group] fp32 -> step and zero point of each group, [..., 1] fp32, the step rounded to fp16.

    The 16 values lie evenly over the range of the group; zero is always in the range, for z is a code.
    """
    low, high = groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low).clamp_(min=_SMALLEST_RANGE) / 15).half().float()
    return scale, (-low / scale).round_().clamp_(0, 15)


def quantize(weight: torch.Tensor, group: int) -> Grouped:
    """weight: [N, K] fp32 -> each value rounded to the nearest of its group's 16: no search, no calibration.

    Raises ValueError when `group` does not divide K.
    """
    N, K = weight.shape
    if group < 1 or K % group:
        raise ValueError(f"groups of {group} do not divide rows of {K}. Use a group size that does.")
    groups = weight.reshape(N, K // group, group)
    scale, zero = steps(groups)
    codes = (groups / scale).round_().add_(zero).clamp_(0, 15)
    return Grouped(codes.to(torch.uint8).view(N, K), scale[..., 0], (-zero * scale)[..., 0])


def encode(weight: Grouped) -> dict[str, torch.Tensor]:
    """The stored tensors, by suffix: qweight, qzeros, scales.

    Raises ValueError for what the layout cannot hold: codes of another width, outputs that do not fill words of eight,
    steps that fp16 does not hold, offsets that are not -z steps.
    """
    N, _ = weight.shape
    if weight.bits != 4 or weight.levels is not None:
        raise ValueError("AWQ stores 4-bit codes of evenly spread values. Convert the weight to these first.")
    if N % 8:
        raise ValueError(f"AWQ packs 8 outputs in a word, which {N} outputs do not fill. Keep this tensor at 16 bits.")
    scale = weight.scale
    if not scale.half().isfinite().all():
        raise ValueError("AWQ stores steps in fp16, and this weight's are too large for that.")
    offset = torch.zeros_like(scale) if weight.offset is None else weight.offset
    zero = (-offset / scale).round_().clamp_(0, 15)
    if not torch.equal(scale, scale.half().float()) or not torch.equal(-zero * scale, offset):
        raise ValueError("AWQ stores steps in fp16 and zero points in 0..15; this weight has others. Quantize it anew.")
    return {
        "qweight": _pack(weight.codes),
        "qzeros": _pack(zero.to(torch.uint8)),
        "scales": scale.t().half().contiguous(),
    }


def decode(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Grouped:
    """tensors: by suffix, as `encode` gives them; shape: [N, K]. Raises ValueError when they do not fit."""
    matrix = unpack(tensors["qweight"], tensors["qzeros"], tensors["scales"])
    if matrix.shape != tuple(shape):
        raise ValueError(f"AWQ's tensors hold {list(matrix.shape)} values where {list(shape)} belong.")
    return matrix


def unpack(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> Grouped:
    """The weight [N, K] of these tensors. Raises ValueError when their types and shapes are not the GEMM layout's."""
    parts = (qweight, qzeros, scales)
    if qweight.dtype != torch.int32 or qzeros.dtype != torch.int32 or not scales.is_floating_point():
        raise ValueError(
            f"AWQ's tensors are int32, int32 and fp16, not {', '.join(str(part.dtype) for part in parts)}."
        )
    if not _fit(*parts):
        raise ValueError(
            f"AWQ's qweight, qzeros and scales are [K, N/8], [G, N/8] and [G, N], "
            f"not {', '.join(str(list(part.shape)) for part in parts)}."
        )
    scale = scales.t().float().contiguous()
    return Grouped(_unpack(qweight), scale, -_unpack(qzeros).float() * scale)


def _fit(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> bool:
    if not qweight.dim() == qzeros.dim() == scales.dim() == 2:
        return False
    (K, words), G = qweight.shape, len(scales)
    return G > 0 and K % G == 0 and qzeros.shape == (G, words) and scales.shape == (G, 8 * words)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """codes: [N, C] uint8 in 0..15 -> int32 [C, N / 8], in ORDER. A word's low byte comes first."""
    N, C = codes.shape
    outputs = codes.reshape(N // 8, 8, C)
    data = torch.stack([outputs[:, low] | outputs[:, high] << 4 for low, high in _BYTES], -1)
    return data.view(torch.int32).squeeze(-1).t().contiguous()


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """words: int32 [C, N / 8] -> uint8 [N, C] in 0..15."""
    C, eighth = words.shape
    data = words.t().contiguous().view(torch.uint8).view(eighth, C, 4)
    outputs = torch.empty(eighth, 8, C, dtype=torch.uint8, device=words.device)
    for (low, high), byte in zip(_BYTES, data.unbind(-1), strict=True):
        pair = byte.contiguous()
        torch.bitwise_and(pair, 15, out=outputs[:, low])
        torch.bitwise_right_shift(pair, 4, out=outputs[:, high])
    return outputs.view(8 * eighth, C)
