"""How 4-bit weights lie in memory, and how kernels read them.

    words  [OUT, 16 * blocks] int32   8 codes each, blocks of 128 columns
    pairs  [OUT, G'] int32            of each group: scale in the low half, offset in the high half, fp16; G' = G padded

A block's 16 words are 4 words (w) of each of 4 threads (q): 16 bytes that a thread loads at once. The nibble at bits
4 t + 16 p of word 4 q + w is the code of column

    32 w + 8 t + 2 q + p        q, w, t < 4; p < 2

so that a warp which holds 8 rows of a block, 4 threads a row, holds what the matrix instructions for 16-bit operands
want to find in these very threads: of every 8 columns 8 t .. 8 t + 7, thread q has 2 q and 2 q + 1, in the two halves
of one register. x needs no other order than its own.

**From codes to numbers.** `(word >> 4 t) & 0x000F000F | 0x43004300` is a pair of bf16 numbers 128 + code, exactly;
0x64006400 makes fp16 numbers 1024 + code. That is less than one instruction per weight. What is too much, 128 * sum of
x over a group, is taken off through the offset: sum (128 + code) x * scale + sum x * (offset - 128 scale).
"""

from __future__ import annotations

import torch

from .launch import constexpr, jit, tl

COLUMNS = 128  # of a block
BLOCK = constexpr(COLUMNS)
NIBBLES = 0x000F000F  # kernels take it as an argument: a constant of this size would be fetched anew for each use


def pack_words(codes: torch.Tensor) -> torch.Tensor:
    """[OUT, IN] uint8 in 0..15 -> words; columns that are missing in the last block get code 0."""
    OUT, IN = codes.shape
    blocks = -(-IN // COLUMNS)
    codes = torch.nn.functional.pad(codes, (0, blocks * COLUMNS - IN)).view(OUT, blocks, 4, 4, 4, 2)  # w t q p
    words = torch.zeros(OUT, blocks, 4, 4, dtype=torch.int32, device=codes.device)  # w q
    for t in range(4):
        for p in range(2):
            words |= codes[:, :, :, t, :, p].int() << (4 * t + 16 * p)
    return words.transpose(2, 3).reshape(OUT, 16 * blocks)


def unpack_words(words: torch.Tensor, IN: int) -> torch.Tensor:
    """The codes again: [OUT, IN] uint8."""
    OUT, blocks = words.shape[0], words.shape[1] // 16
    words = words.view(OUT, blocks, 4, 4).transpose(2, 3)
    codes = torch.empty(OUT, blocks, 4, 4, 4, 2, dtype=torch.uint8, device=words.device)
    for t in range(4):
        for p in range(2):
            codes[:, :, :, t, :, p] = (words >> (4 * t + 16 * p)) & 15
    return codes.view(OUT, blocks * COLUMNS)[:, :IN]


def pack_pairs(scale: torch.Tensor, offset: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """scale, offset: [OUT, G] fp32 -> pairs of what is left of them when divided by `unit`, and `unit`.

    `unit` is a power of two which brings the largest to the upper end of fp16's range, where small ones keep their
    bits: an fp16 scale stays as it is.
    """
    OUT, G = scale.shape
    both = torch.stack([scale, torch.zeros_like(scale) if offset is None else offset], 2)
    largest = both.abs().max().item()
    unit = 2.0 ** (torch.tensor(largest).log2().floor().item() - 14) if largest > 0 else 1.0
    both = torch.nn.functional.pad(both / unit, (0, 0, 0, -G % 4)).half()
    return both.contiguous().view(torch.int32).view(OUT, -1), unit


def unpack_pairs(pairs: torch.Tensor, unit: float, G: int) -> tuple[torch.Tensor, torch.Tensor]:
    both = pairs[:, :G].contiguous().view(torch.float16).view(pairs.shape[0], G, 2).float() * unit
    return both[:, :, 0], both[:, :, 1]


@jit
def numbers(words, mask, levels_ptr, dtype: tl.constexpr, HAS_LEVELS: tl.constexpr):
    """[..., 16] words -> [..., 16, 2, 2, 2] in dtype: the last dimensions are 4 q + w, the bits of t (low, high), p.

    With levels the levels of the codes; without, code + 128 in bf16, code + 1024 in fp16, the code in fp32."""
    t0, t1, t2, t3 = words & mask, (words >> 4) & mask, (words >> 8) & mask, (words >> 12) & mask
    codes = tl.join(tl.join(t0, t1), tl.join(t2, t3))
    if HAS_LEVELS:
        # Gathered from shared memory: Triton's pipeline would copy what loads by address fetch, step by step.
        levels = tl.load(levels_ptr + tl.arange(0, 16))
        every = tl.reshape(tl.join(codes & 0xFFFF, codes >> 16), (2 * codes.numel,))
        return tl.reshape(tl.gather(levels, every, 0), codes.shape + [2])
    elif dtype == tl.float32:
        return tl.join((codes & 0xFFFF).to(tl.float32), (codes >> 16).to(tl.float32))
    else:
        codes |= 0x43004300 if dtype == tl.bfloat16 else 0x64006400
        low, high = (codes & 0xFFFF).to(tl.int16), (codes >> 16).to(tl.int16)
        return tl.join(low.to(dtype, bitcast=True), high.to(dtype, bitcast=True))


@jit
def scales(pairs):
    return (pairs & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def offsets(pairs, dtype: tl.constexpr, HAS_LEVELS: tl.constexpr):
    """What goes with `numbers` in this dtype."""
    offset = (pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    if not HAS_LEVELS:
        if dtype == tl.bfloat16:
            offset -= 128 * scales(pairs)
        elif dtype == tl.float16:
            offset -= 1024 * scales(pairs)
    return offset


@jit
def group_of(first, COUNT: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """[COUNT]: the groups of COUNT pieces of WIDTH columns, each in one; `first` is a multiple of WIDTH."""
    piece = tl.arange(0, COUNT)
    return first // GROUP + piece if WIDTH == GROUP else (first + piece * WIDTH) // GROUP
