"""Weights of 4 bits and their product: AWQ, Q4_0, Q4_1, Q4_K, NF4 and IQ4_NL, all in one layout.

    W[o, i] = level(codes[o, i]) * scale[o, i // group] + offset[o, i // group]

int4_layout.py says how they lie in memory, int4_skinny.py and int4_wide.py multiply.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from . import int4_wide
from .int4_layout import pack_pairs, pack_words, unpack_pairs, unpack_words
from .int4_skinny import skinny
from .int4_tile import SKINNY
from .launch import on_triton
from .linear import linear_ref
from .packed import Packed
from .rms_norm import rms_norm, rms_norm_ref
from .swiglu import swiglu as swiglu_op

SCRATCH = 32 << 20  # bytes of W unpacked at a time: what is written stays in the L2 cache until cuBLAS reads it


def path(N: int, dtype: torch.dtype, deterministic: bool) -> Literal["skinny", "gemm", "dense"]:
    """Which kernel multiplies N rows.

    To 16 rows one pass over W is all the work: `skinny`. From there on W is unpacked to 16 bits, in registers by
    `gemm`, or once to memory for cuBLAS by `dense`. On an H200, for each weight:

    dense  reads 0.53 bytes, writes 2: 0.59 ps more than cuBLAS alone needs (4.3 TB/s; less what the L2 cache keeps)
    gemm   computes 2 N FLOP slower than cuBLAS does: 2.4 fs a row, if it reaches 380 TFLOP/s where cuBLAS has 700

    which is the same at 245 rows. fp32 is for checking and has no unpacking in registers.
    """
    if N <= SKINNY or deterministic:
        return "skinny"
    return "gemm" if N <= 256 and dtype != torch.float32 else "dense"


class Int4(Packed):
    """words, pairs: int4_layout.py. levels: the [16] in each dtype of x, or None."""

    def __init__(
        self, words: torch.Tensor, pairs: torch.Tensor, unit: float, levels: dict[torch.dtype, torch.Tensor] | None,
        has_offset: bool, shape: tuple[int, int], group: int,
    ):  # fmt: skip
        self.words, self.pairs, self.unit, self.levels = words, pairs, unit, levels
        self.has_offset, self.shape, self.group = has_offset, shape, group

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        levels: torch.Tensor | None,
        device: torch.device,
    ) -> Int4:
        """codes: [OUT, IN] uint8 in 0..15; scale, offset: [OUT, G] fp32, kept as fp16; levels: [16] fp32. On the CPU.

        IN: a multiple of 32; IN / G, the group, of 16.
        """
        (OUT, IN), G = codes.shape, scale.shape[1]
        assert codes.dtype == torch.uint8 and IN % 32 == 0, (codes.dtype, codes.shape)
        assert len(scale) == OUT and IN % (16 * G) == 0, (codes.shape, scale.shape)
        assert offset is None or offset.shape == scale.shape, (offset.shape, scale.shape)
        assert levels is None or levels.shape == (16,), levels
        pairs, unit = pack_pairs(scale, offset)
        tables = None
        if levels is not None:
            tables = {dtype: levels.to(device, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
        return cls(pack_words(codes.to(device)), pairs.to(device), unit, tables, offset is not None, (OUT, IN), IN // G)

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
        around: dict[str, Any] = {"norm": norm, "eps": eps, "residual": residual, "swiglu": swiglu}
        if not on_triton(x):
            return self._ref(x, **around)
        (N, IN), OUT = x.shape, self.shape[0] // (1 + swiglu)
        assert IN == self.shape[1] and x.stride(1) == 1, (x.shape, x.stride(), self.shape)
        assert norm is None or (norm.shape == (IN,) and norm.stride(0) == 1), (norm.shape, norm.stride(), IN)
        assert residual is None or (residual.shape == (N, OUT) and residual.stride(1) == 1), (residual.shape, N, OUT)
        assert residual is None or residual is not x, "programs read all of x while others write"
        levels = None if self.levels is None else self.levels[x.dtype]
        matrix = self.words, self.pairs, self.unit, levels
        which = path(N, x.dtype, deterministic)
        if which == "skinny":
            return skinny(x, *matrix, self.has_offset, self.group, **around, deterministic=deterministic)
        h = x if norm is None else rms_norm(x, norm, eps)
        straight = None if swiglu else residual
        if which == "gemm":
            y = int4_wide.gemm(h, *matrix, self.group, straight)
        else:
            y = self._dense_linear(h, straight)
        if not swiglu:
            return y
        y = swiglu_op(y)
        return y if residual is None else residual.add_(y)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        if on_triton(self.words):
            return self._rows(0, self.shape[0], dtype)
        scale, offset = unpack_pairs(self.pairs, self.unit, self.shape[1] // self.group)
        codes = unpack_words(self.words, self.shape[1])
        w = codes.float() if self.levels is None else self.levels[torch.float32][codes.int()]
        w = w.view(*scale.shape, self.group) * scale[:, :, None] + offset[:, :, None]
        return w.view(self.shape).to(dtype)

    def tensors(self) -> list[torch.Tensor]:
        return [self.words, self.pairs, *(self.levels or {}).values()]

    def _rows(self, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        out = torch.empty(end - begin, self.shape[1], device=self.words.device, dtype=dtype)
        levels = None if self.levels is None else self.levels[dtype]
        return int4_wide.dense(self.words[begin:end], self.pairs[begin:end], self.unit, levels, self.group, out)

    def _dense_linear(self, h: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """A few rows of W at a time, so that the scratch stays small and in the cache."""
        (N, IN), OUT = h.shape, self.shape[0]
        y = torch.empty(N, OUT, device=h.device, dtype=h.dtype) if residual is None else residual
        chunks = -(-OUT * IN * h.itemsize // SCRATCH)
        step = -(-OUT // chunks // 64) * 64
        for begin in range(0, OUT, step):
            end = min(begin + step, OUT)
            w, part = self._rows(begin, end, h.dtype).t(), y[:, begin:end]
            if residual is None:
                torch.mm(h, w, out=part)
            else:
                part.addmm_(h, w)
        return y

    def _ref(
        self, x: torch.Tensor, *, norm: torch.Tensor | None, eps: float, residual: torch.Tensor | None, swiglu: bool
    ) -> torch.Tensor:
        """In fp32, with h rounded to x.dtype as the kernels do."""
        h = x if norm is None else rms_norm_ref(x.float(), norm.float(), eps).to(x.dtype)
        y = linear_ref(h.float(), self.dense(torch.float32), swiglu=swiglu)
        return y.to(x.dtype) if residual is None else residual.add_(y.to(x.dtype))
