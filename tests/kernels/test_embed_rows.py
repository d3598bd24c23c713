"""Embeddings of rows, and what begins a row: kernels against references, references against fp64 and plain counting."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.embed_rows import embed_rows, embed_rows_ref, start_row, start_row_ref

# fp32: the order of a sum of eight; below it, one rounding, which may fall to either side
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def test_embed_rows_reads_row_c_times_v_plus_code_and_rounds_once(device):
    V, H = 1026, 24
    table = torch.randn(8 * V, H, device=device).bfloat16()
    codes = torch.randint(0, V, (5, 8), device=device)
    codes[0] = torch.tensor([0, 1, 2, 5, 1024, 1025, 1023, 7])
    want = torch.stack([sum(table[c * V + row[c]].double() for c in range(8)) for row in codes.tolist()]).bfloat16()
    assert torch.equal(embed_rows(codes, table), want) and torch.equal(embed_rows_ref(codes, table), want)
    assert 3 * V + 5 == 3083  # code 5 of codebook 3, as published


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("N, C, H", [(1, 8, 2560), (5, 8, 123), (3, 3, 513)])
@pytest.mark.parametrize("codes_dtype", [torch.int16, torch.int64], ids=str)
def test_embed_rows(N, C, H, dtype, codes_dtype, triton_device):
    torch.manual_seed(0)
    V = 37
    table = torch.randn(C * V, 2 * H, device=triton_device).to(dtype)[:, :H]
    codes = torch.randint(0, V, (N, C + 1), device=triton_device).to(codes_dtype)[:, :C]
    codes[0] = V - 1
    want = embed_rows_ref(codes, table)
    torch.testing.assert_close(embed_rows(codes, table), want, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def lanes(B: int, device: torch.device) -> list[torch.Tensor]:
    """row, prompt, active, positions: columns of one matrix, some lanes idle."""
    matrix = torch.full((B, 6), -7, dtype=torch.int32, device=device)
    matrix[:, 0] = torch.arange(B) * 5
    matrix[:, 1] = torch.arange(B) * 100 + 20
    matrix[:, 2] = torch.arange(B) % 3 != 1
    matrix[matrix[:, 2] == 0, :2] = torch.tensor([0, 1], dtype=torch.int32, device=device)
    return list(matrix[:, :4].unbind(1))


@pytest.mark.parametrize("B", [1, 4, 17])
def test_start_row(B, triton_device):
    """Three rows one after the other, fed from a matrix that has a column more than codebooks."""
    V, C, H = 11, 8, 600
    table = torch.randn(C * V, H, device=triton_device)
    got, want = lanes(B, triton_device), lanes(B, triton_device)
    for _ in range(3):
        last = torch.randint(0, V, (B, C + 1), device=triton_device).short()[:, :C]
        x = start_row(last, table, *got)
        torch.testing.assert_close(x, start_row_ref(last, table, *want), atol=1e-6, rtol=1e-6)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_a_row_begins_behind_its_prompt_and_idle_lanes_stay(device):
    """Prefill drew row 0, so the first start is of row 1; what it feeds, row 0, stands right behind the prompt."""
    row, prompt, active, positions = lanes(3, device)
    row.zero_()
    last, table = torch.zeros(3, 2, dtype=torch.int16, device=device), torch.ones(10, 4, device=device)
    for n in (1, 2, 3):
        x = start_row_ref(last, table, row, prompt, active, positions)
        assert row.tolist() == [n, 0, n]
        assert positions.tolist() == [20 + n - 1, 0, 220 + n - 1]
        assert torch.equal(x, torch.full((3, 4), 2.0, device=device))
