"""y = x W^T on the CPU, with W in bytes: whole-number products of W and of x, which takes two bytes a number.

    W[o, i] = codes[o, i] * scale[o]
    x[n, i] = unit[n] * (low[n, i] + 256 * high[n, i])        unit[n] = max_i |x[n, i]| / (127 * 256), bytes with a sign
    y[n, o] = unit[n] * (scale[o] * sum_i low * codes + 256 * scale[o] * sum_i high * codes)

Of bytes a processor multiplies most in a cycle (VNNI), so that oneDNN waits for W and hardly for arithmetic. torch's
`_weight_int8pack_mm` makes fp32 of every code first; that alone takes longer than W needs to arrive on processors with
narrow vector units, and again for each row of x. One byte of x would not do: rows of a language model have channels
that are 100 times larger than most. Two bytes (fp16, bf16 x) are wrong by 1/65 000 of the row's largest value at most,
three (fp32 x) by 1/8 000 000. The bytes of a row are rows of the same product: W is read once for all of them.

Sums of whole numbers are exact. So a row's bits do not hang on the other rows, and `deterministic` costs nothing.

Weights with a scale for each group, an offset or a table of levels have no such product: they are rounded again, to one
scale for each row, and move by half a 127th of the row's largest weight at most. bench/quant.py tells what that is
beside the error they have.
"""

from __future__ import annotations

import platform
from functools import cache

import torch

from .cpu_linear import PREFETCHING_ROWS
from .huge_pages import use_huge_pages
from .packed import Packed
from .rms_norm import rms_norm_ref
from .swiglu import swiglu_ref

ZERO = 128  # what oneDNN takes off the bytes of x: it has fast products of unsigned with signed bytes alone
LARGEST = {2: 127 << 8, 3: 63 << 16}  # the number of so many bytes that a row's largest value becomes
# fp32 around 1.5 * 2^23 are whole numbers, and their bits count up from 0x4B400000: adding that rounds and converts at
# once. 0x8080 gives each of two bytes its own zero; 0x808080, for three, is too far to be added in fp32.
INTEGERS = {2: torch.tensor(1.5 * 2**23 + 0x8080), 3: torch.tensor(1.5 * 2**23)}
CHUNK = 256  # rows of W that are plain numbers at one time, while it is packed


@cache
def has_byte_products() -> bool:
    """Whether this processor has them, and no sum on the way to the result is cut off at 16 bits (AVX2 does that)."""
    ops = torch.ops.onednn
    if platform.machine().lower() not in ("x86_64", "amd64") or not hasattr(ops, "qlinear_pointwise"):
        return False
    IN = 64
    weight = CpuInt8.pack(torch.full((16, IN), 127, dtype=torch.int8), torch.ones(16, 1))
    return weight.linear(torch.full((1, IN), 127.0))[0, 0].item() == 127 * 127 * IN


class CpuInt8(Packed):
    def __init__(self, codes: torch.Tensor, scale: torch.Tensor):
        """codes: [OUT, IN] int8 in -127..127; scale: [OUT] fp32. Both on the CPU."""
        assert codes.dtype == torch.int8 and scale.shape == codes.shape[:1], (codes.dtype, codes.shape, scale.shape)
        self.shape = codes.shape[0], codes.shape[1]
        self.scale = scale.float().contiguous()
        self._zeros = torch.zeros(len(scale), dtype=torch.int32)
        self._words = torch.ops.onednn.qlinear_prepack(codes, [PREFETCHING_ROWS, codes.shape[1]])  # opaque
        use_huge_pages(torch.ops.mkldnn.data_ptr(self._words), self._words.numel())

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None = None,
        levels: torch.Tensor | None = None,
    ) -> CpuInt8:
        """Any quantized matrix: see `kernels.pack.pack`. Exact where `keeps` says so."""
        if keeps(codes, scale, offset):
            return cls(codes, scale[:, 0])
        rounded, row_scale = torch.empty(codes.shape, dtype=torch.int8), torch.empty(len(codes))
        for first in range(0, len(codes), CHUNK):
            rows = slice(first, first + CHUNK)
            values = dequantize(codes[rows], scale[rows], None if offset is None else offset[rows], levels)
            step = values.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            rounded[rows] = (values / step[:, None]).round_().to(torch.int8)
            row_scale[rows] = step
        return cls(rounded, row_scale)

    def linear(
        self,
        x: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
        swiglu: bool = False,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert x.shape[1] == self.shape[1], (x.shape, self.shape)
        h = x.float() if norm is None else rms_norm_ref(x.float(), norm.float(), eps)
        return finish(self._product(h, 3 if x.dtype == torch.float32 else 2), x.dtype, residual, swiglu)

    def _product(self, x: torch.Tensor, parts: int) -> torch.Tensor:
        """x: [N, IN] fp32 -> [N, OUT] fp32."""
        N, IN = x.shape
        # Few ops: between two large products each of them runs cold. A row of zeros is 0 / 0, whatever bytes that is,
        # times a unit of 0.
        unit = torch.linalg.vector_norm(x, torch.inf, 1, True).div_(LARGEST[parts])
        numbers = torch.addcdiv(INTEGERS[parts], x, unit)
        if parts == 3:
            numbers.view(torch.int32).add_(0x408080)
        # Lowest byte first, as x86 stores them. Weights that come from memory want four rows, as cpu_linear.py says:
        # of a single row all bytes are taken, whatever is in the last.
        planes = numbers.view(torch.uint8).as_strided((4 if N == 1 else parts, N, IN), (1, 4 * IN, 4)).contiguous()
        sums = torch.ops.onednn.qlinear_pointwise(
            *(planes.view(-1, IN), 1.0, ZERO, self._words, self.scale, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        ).view(-1, N, self.shape[0])
        y = sums[parts - 1]
        for part in reversed(range(parts - 1)):
            y = torch.add(sums[part], y, alpha=256)
        return y.mul_(unit)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        W = torch.empty(self.shape, dtype=dtype)
        torch.mul(self._words.to_dense().t(), self.scale[:, None], out=W)
        return W

    def tensors(self) -> list[torch.Tensor]:
        return [self._words, self.scale, self._zeros]


def keeps(codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> bool:
    """Whether `CpuInt8.pack` keeps such a matrix as it is: bytes with one scale a row."""
    return codes.dtype == torch.int8 and scale.shape[1] == 1 and offset is None


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, levels: torch.Tensor | None
) -> torch.Tensor:
    """[OUT, IN] fp32, as packed.py defines W."""
    values = (codes.float() if levels is None else levels[codes.int()]).view(*scale.shape, -1) * scale[:, :, None]
    if offset is not None:
        values += offset[:, :, None]
    return values.view(codes.shape)


def finish(y: torch.Tensor, dtype: torch.dtype, residual: torch.Tensor | None, swiglu: bool) -> torch.Tensor:
    """What comes behind the product y [N, OUT], which is rounded to `dtype` at the end alone."""
    if swiglu:
        y = swiglu_ref(y)
    return y.to(dtype) if residual is None else residual.add_(y)
