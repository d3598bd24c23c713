"""Weights of one byte, int8 or fp8: how they lie in memory, and how a kernel makes numbers of them.

    W[o, i] = code[o, i] * scale[o, i // group] + offset[o, i // group]

**What decoding may cost.** At 4.3 TB/s a multiprocessor of an H200 gets 18 weights a clock and has 128 lanes to spend
on them: 7 instructions a weight, the product's own included. An int8 code is stored plus 128. One byte permutation puts
it into the mantissa of 2^15 (0x4700uu00 is 32768 + u), one addition takes 32768 + 128 away: exact, and without the
conversion of integers, of which a multiprocessor does 16 a clock. fp8 is converted by the instruction for pairs
(compute capability 8.9 on), or elsewhere by moving its bits and one multiplication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .launch import INTERPRETED, constexpr, jit, tl, triton

# fp32: a byte in the second place of these bits is 2^15 + byte; what to take away for a code that is stored plus 128.
_TWO_15 = constexpr(0x47000000)
BIAS = constexpr(32768.0 + 128.0)


@dataclass(frozen=True, eq=False)
class Bytes:
    """codes: [ROWS, IN, or more columns that hold zeros] uint8, rows begin on 16 bytes; int8 plus 128, or the bits of
    float8_e4m3fn. scale, offset: [ROWS] fp32; with `group` [ROWS, an even number] fp16, to be multiplied by `unit`."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    group: int  # columns that share a scale, a power of two from 16 on; 0: all
    unit: float
    columns: int  # IN
    float8: bool

    @property
    def code(self) -> str:
        """How kernels decode a byte on the device that Triton launches on."""
        if not self.float8:
            return "int8"
        native = not INTERPRETED.value and triton.runtime.driver.active.get_current_target().arch >= 89
        return "fp8" if native else "fp8 bits"

    @property
    def scales(self) -> str:
        return "row" if not self.group else "group" if self.offset is None else "group and offset"

    @property
    def arrays(self) -> int:
        """Of numbers per group."""
        return 0 if not self.group else 1 if self.offset is None else 2

    @property
    def shift(self) -> int:
        """Column >> shift is the column's group."""
        return self.group.bit_length() - 1 if self.group else 0

    def pointers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, scales, offsets; those of groups as words of two: asynchronous copies have 4 bytes at least."""
        if not self.group:
            return self.codes, self.scale, self.scale
        words = self.scale.view(torch.int32)
        return self.codes, words, words if self.offset is None else self.offset.view(torch.int32)

    def tensors(self) -> list[torch.Tensor]:
        return [self.codes, self.scale] + ([] if self.offset is None else [self.offset])


def unit_of(scale: torch.Tensor, offset: torch.Tensor | None) -> float:
    """A power of two, in which the largest weight may be 2^15: fp16 holds that, and all bits of scales down to 2^-21 of
    the largest one."""
    largest = max(128 * float(scale.abs().max()), 0.0 if offset is None else float(offset.abs().max()))
    return 2.0 ** (math.frexp(largest)[1] - 14) if largest > 0 else 1.0


@jit
def values(codes, CODE: tl.constexpr):
    """Bytes -> the numbers they stand for, in fp32."""
    if CODE == "int8":
        numbers = with_bias(codes) - BIAS
    elif CODE == "fp8":
        numbers = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        bits = codes.to(tl.int32)  # sign, 4 bits of exponent and 3 of mantissa; fp32 has 8 and 23, and another bias
        bits = ((bits & 128) << 24) | ((bits & 127) << 20)
        numbers = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    return numbers


@jit
def weights(
    w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, wanted, IN, shift,
    CODE: tl.constexpr, SCALES: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """[a, b, c, THREADS, 16] fp32: of rows o, 16 columns a thread from `first` on; o, first, wanted: [a, b, c, 1].

    The scale of a whole row is left to the caller. With groups the bias of the stored code goes with the offset, in one
    operation: exact without offset, for BIAS has 9 bits and a scale 11, else to 2^-9 of the scale."""
    k = tl.arange(0, THREADS * 16)[None, None, None, :]
    mask = wanted & (first + k // 16 * 16 < IN)
    ptrs = w_ptr + o.to(tl.int64) * stride_wo + (first + k)
    codes = tl.load(ptrs, mask=mask, other=0, eviction_policy="evict_first")  # nobody reads W twice
    codes = tl.reshape(codes, (codes.shape[0], codes.shape[1], codes.shape[2], THREADS, 16))
    if SCALES == "row":
        w = values(codes, CODE)
    else:
        scale = _of_group(s_ptr, o, stride_so, first, wanted, IN, shift, THREADS)
        offset = -BIAS * scale
        if SCALES == "group and offset":
            offset += _of_group(z_ptr, o, stride_so, first, wanted, IN, shift, THREADS)
        w = fma(with_bias(codes), scale[:, :, :, :, None], offset[:, :, :, :, None])
    return w


@jit
def _of_group(ptr, o, stride_so, first, wanted, IN, shift, THREADS: tl.constexpr):
    """[a, b, c, THREADS] fp32: row o's number for the group in which a thread's 16 columns lie."""
    column = first + tl.arange(0, THREADS)[None, None, None, :] * 16
    group = column >> shift
    words = tl.load(ptr + o.to(tl.int64) * stride_so + (group >> 1), mask=wanted & (column < IN), other=0)
    return (words >> ((group & 1) * 16)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def fma(a, b, c):
    """a * b + c in fp32, rounded once; whether the compiler would make one operation of it is the user's setting."""
    if INTERPRETED:  # whose own takes one element after the other
        total = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    else:
        total = tl.fma(a, b, c)
    return total


@jit
def with_bias(codes):
    """int8 codes as stored -> code + 32896 in fp32."""
    if INTERPRETED:
        numbers = ((codes.to(tl.int32) << 8) | _TWO_15).to(tl.float32, bitcast=True)
    else:
        numbers = tl.inline_asm_elementwise(
            """
            prmt.b32 $0, $4, 0x47000000, 0x7404;
            prmt.b32 $1, $4, 0x47000000, 0x7414;
            prmt.b32 $2, $4, 0x47000000, 0x7424;
            prmt.b32 $3, $4, 0x47000000, 0x7434;
            """,
            "=r,=r,=r,=r,r",
            [codes],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    return numbers


@jit
def sixteen(ptr, row, first, wanted, IN, THREADS: tl.constexpr):
    """[a, b, c, THREADS, 16]: of what begins at ptr + row, 16 columns a thread from `first` on, by loads of 16 bytes;
    row, first, wanted: [a, b, c, 1]. Beyond IN, and where not wanted, zeros."""
    if ptr.dtype.element_ty.primitive_bitwidth == 16:
        low = _piece(ptr, row, first, wanted, IN, THREADS, 8)
        tile = tl.permute(tl.join(low, _piece(ptr, row, first + 8, wanted, IN, THREADS, 8)), (0, 1, 2, 3, 5, 4))
    else:
        even = tl.join(
            _piece(ptr, row, first, wanted, IN, THREADS, 4), _piece(ptr, row, first + 8, wanted, IN, THREADS, 4)
        )
        odd = tl.join(
            _piece(ptr, row, first + 4, wanted, IN, THREADS, 4), _piece(ptr, row, first + 12, wanted, IN, THREADS, 4)
        )
        tile = tl.permute(tl.join(even, odd), (0, 1, 2, 3, 5, 6, 4))
    return tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], THREADS, 16))


@jit
def _piece(ptr, row, first, wanted, IN, THREADS: tl.constexpr, WIDTH: tl.constexpr):
    """[a, b, c, THREADS, WIDTH]: the first WIDTH of each thread's 16 columns."""
    k = tl.arange(0, THREADS * WIDTH)[None, None, None, :]
    i = first + (k + k // WIDTH * (16 - WIDTH))
    tile = tl.load(ptr + row + i, mask=wanted & (i < IN), other=0.0, eviction_policy="evict_last")
    return tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2], THREADS, WIDTH))
