"""Codes to the first activations of the codec: eight table rows and a bias.

    out[f, :] = bias + sum_q table[q * size + code_q],    code_q = codes[slot, t + q, q],    t = pos + index of frame f

codes: [slots, rows, Q] int16, delayed rows as the sampler stores them; a value outside 0 .. size - 1 counts as 0
table: [Q * size, L]    bias: [L]    frames: see codec_window.py    ->    out: [F, L], all fp32
Frames from their utterance's end on are neither read nor written.
"""

from __future__ import annotations

import torch

from .codec_window import COUNT, END, INDEX, LINE, POS, SLOT
from .launch import jit, on_triton, tl, triton


def codec_lookup(
    codes: torch.Tensor, frames: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    if not on_triton(table):
        return codec_lookup_ref(codes, frames, table, bias, out)
    Q, L = codes.shape[2], table.shape[1]
    assert codes.is_contiguous() and table.is_contiguous() and len(table) % Q == 0, (codes.shape, table.shape)
    assert out.shape == (len(frames), L) and out.is_contiguous() and bias.shape == (L,), (out.shape, bias.shape)
    assert codes.numel() < 2**31, codes.shape  # offsets are int32
    _kernel[(len(frames),)](
        codes,
        frames,
        table,
        bias,
        out,
        codes.shape[1],
        Q=Q,
        SIZE=len(table) // Q,
        L=L,
        BLOCK_L=triton.next_power_of_2(L),
        num_warps=2,
    )
    return out


@jit
def _kernel(
    codes_ptr, frames_ptr, table_ptr, bias_ptr, out_ptr, R,
    Q: tl.constexpr, SIZE: tl.constexpr, L: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0)
    line = frames_ptr + f * LINE
    t = tl.load(line + POS) + tl.load(line + INDEX)
    if (tl.load(line + COUNT) > 0) & (t < tl.load(line + END)):
        row = codes_ptr + (tl.load(line + SLOT) * R + t) * Q
        n = tl.arange(0, BLOCK_L)
        h = tl.load(bias_ptr + n, mask=n < L, other=0.0)
        for q in tl.static_range(Q):
            code = tl.load(row + q * Q + q).to(tl.int32)
            code = q * SIZE + tl.where((code >= 0) & (code < SIZE), code, 0)
            h += tl.load(table_ptr + code * L + n, mask=n < L, other=0.0)
        tl.store(out_ptr + f * L + n, h, mask=n < L)


def codec_lookup_ref(
    codes: torch.Tensor, frames: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    Q = codes.shape[2]
    size = len(table) // Q
    for f, (_, slot, pos, count, end, _, index, _) in enumerate(frames.tolist()):
        if count and (t := pos + index) < end:
            read = torch.stack([codes[slot, t + q, q].long() for q in range(Q)])
            rows = torch.where((read >= 0) & (read < size), read, 0) + size * torch.arange(Q, device=read.device)
            out[f] = table[rows].sum(0) + bias
    return out
