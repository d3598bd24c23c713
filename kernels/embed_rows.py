"""The embedding of audio rows: the sum of one table row per codebook, accumulated in fp32 and rounded once.

    x[n] = sum_c table[c * V + codes[n, c]]

codes: [N, C] integers in 0..V-1, rows may be strided    table: [C * V, H]    ->    x: [N, H] in table.dtype

`start_row` begins a row of a running batch: it embeds the row before and moves each lane's counters on, in one launch.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from .launch import jit, on_triton, tl, triton

# 16 bytes a thread in bf16, and C loads of them on their way at once
_BLOCK_H, _WARPS = 512, 2


def embed_rows(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    if not on_triton(table):
        return embed_rows_ref(codes, table)
    x, sizes = _prepare(codes, table)
    N, H = x.shape
    _embed_kernel[(N, triton.cdiv(H, _BLOCK_H))](codes, table, x, *sizes, BLOCK_H=_BLOCK_H, num_warps=_WARPS)
    return x


def start_row(
    last: torch.Tensor,
    table: torch.Tensor,
    row: torch.Tensor,
    prompt: torch.Tensor,
    active: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """row += active; positions = prompt + row - 1; returns x: [B, H], the embedding of `last`, the rows before.

    last: [B, C] int16. Per lane, [B] int32, of any stride: row, the number of the row that begins (in and out);
    prompt, rows of its prompt; active, 1 for a lane in use, else 0; positions (out), where the embedded row stands.
    An idle lane holds row 0 and prompt 1, and so stays at position 0.
    """
    if not on_triton(table):
        return start_row_ref(last, table, row, prompt, active, positions)
    lanes = (row, prompt, active, positions)
    assert all(lane.shape == last.shape[:1] for lane in lanes), (last.shape, [lane.shape for lane in lanes])
    x, sizes = _prepare(last, table)
    B, H = x.shape
    _start_kernel[(B, triton.cdiv(H, _BLOCK_H))](
        last, table, x, *lanes, *(lane.stride(0) for lane in lanes), *sizes, BLOCK_H=_BLOCK_H, num_warps=_WARPS
    )
    return x


def _prepare(codes: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """x and what both kernels take of sizes and strides."""
    (N, C), (entries, H) = codes.shape, table.shape
    assert entries % C == 0 and codes.stride(1) == table.stride(1) == 1, (codes.stride(), table.shape, table.stride())
    x = torch.empty(N, H, device=table.device, dtype=table.dtype)
    return x, (codes.stride(0), table.stride(0), H, C, entries // C)


@jit
def _embed_kernel(codes_ptr, table_ptr, x_ptr, stride_cn, stride_t, H, C: tl.constexpr, V, BLOCK_H: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    _embed(codes_ptr + n * stride_cn, table_ptr, x_ptr + n * H, stride_t, H, C, V, BLOCK_H)


@jit
def _start_kernel(
    last_ptr,
    table_ptr,
    x_ptr,
    row_ptr,
    prompt_ptr,
    active_ptr,
    positions_ptr,
    stride_row,
    stride_prompt,
    stride_active,
    stride_positions,
    stride_lb,
    stride_t,
    H,
    C: tl.constexpr,
    V,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:  # one program of each lane counts, and no other reads the counters
        row = tl.load(row_ptr + b * stride_row) + tl.load(active_ptr + b * stride_active)
        tl.store(row_ptr + b * stride_row, row)
        tl.store(positions_ptr + b * stride_positions, tl.load(prompt_ptr + b * stride_prompt) + row - 1)
    _embed(last_ptr + b * stride_lb, table_ptr, x_ptr + b * H, stride_t, H, C, V, BLOCK_H)


@jit
def _embed(codes_ptr, table_ptr, x_ptr, stride_t, H, C: tl.constexpr, V, BLOCK_H: tl.constexpr):
    """One block of one row. codes_ptr: [C]; x_ptr: [H]."""
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = h < H
    x = tl.zeros([BLOCK_H], tl.float32)
    for c in tl.static_range(C):
        entry = c * V + tl.load(codes_ptr + c).to(tl.int64)
        x += tl.load(table_ptr + entry * stride_t + h, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + h, x.to(x_ptr.dtype.element_ty), mask=mask)


def embed_rows_ref(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    C = codes.shape[1]
    ids = codes + _first_entries(C, table.shape[0] // C, codes.device)
    return F.embedding(ids, table).sum(1)  # torch sums bf16 in fp32


def start_row_ref(
    last: torch.Tensor,
    table: torch.Tensor,
    row: torch.Tensor,
    prompt: torch.Tensor,
    active: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    row.add_(active)
    torch.add(prompt, row, out=positions).sub_(1)
    return embed_rows_ref(last, table)


@cache
def _first_entries(C: int, V: int, device: torch.device) -> torch.Tensor:
    """[C] int64: where each codebook's part of the table begins."""
    return torch.arange(0, C * V, V, device=device)
