"""Attention over pages against a plain softmax in fp64 over contiguous keys and values."""

import pytest
import torch

from octavo.kernels.paged_attention import decode_attention, prefill_attention, write_rows

TOL = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
S, K, G, D = 4, 2, 3, 16  # rows per page, key heads, queries per key head, head size


def attend(q, k, v):
    """q: [n, H, D], the last n of the rows of k, v: [L, K, D]."""
    n, L = len(q), len(k)
    k, v = (t.double().repeat_interleave(G, 1) for t in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), k) / D**0.5
    later = torch.arange(L)[None] > torch.arange(L - n, L)[:, None]
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(later.to(q.device), -torch.inf).softmax(-1), v)


@pytest.fixture
def paged(device):
    """Three sequences of 1, 9 and 16 rows, scattered over pages; everything else in the pages is huge."""

    def make(dtype):
        lengths, tables = [1, 9, 16], [[7, 0, 0, 0], [3, 9, 1, 0], [2, 8, 4, 6]]
        pages = torch.full((10, S, 2, K, D), 1e4, dtype=dtype, device=device)
        kv = [torch.randn(n, 2 * K, D, device=device).to(dtype) for n in lengths]
        for table, rows in zip(tables, kv, strict=True):
            slots = torch.tensor([table[r // S] * S + r % S for r in range(len(rows))], device=device)
            write_rows(pages, slots, rows)
        return pages, torch.tensor(tables, device=device), [(rows[:, :K], rows[:, K:]) for rows in kv], lengths

    return make


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_decode_attention_sees_its_rows_and_no_others(paged, dtype, device):
    pages, tables, kv, lengths = paged(dtype)
    q = torch.randn(3, K * G, D, device=device).to(dtype)
    beyond = torch.arange(4 * S, device=device) >= torch.tensor(lengths, device=device)[:, None]
    mask = torch.zeros(3, 1, 1, 4 * S, dtype=dtype, device=device).masked_fill_(beyond[:, None, None], -torch.inf)
    got = decode_attention(q, pages, tables, mask)
    want = torch.cat([attend(q[i : i + 1], *kv[i]) for i in range(3)])
    torch.testing.assert_close(got.double(), want, atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_prefill_attention_is_causal_and_reads_a_reused_prefix(paged, dtype, device):
    """Sequence 1 computes its last 5 rows behind 4 rows that were there; sequence 2 all 16; sequence 0 its only one."""
    pages, tables, kv, lengths = paged(dtype)
    new = [1, 5, 16]
    q = torch.randn(sum(new), K * G, D, device=device).to(dtype)
    spans = [(n, length, tables[i, : -(-length // S)]) for i, (n, length) in enumerate(zip(new, lengths, strict=True))]
    got = prefill_attention(q, pages, spans)
    want = torch.cat([attend(part, *kv[i]) for i, part in enumerate(q.split(new))])
    torch.testing.assert_close(got.double(), want, atol=TOL[dtype], rtol=TOL[dtype])


def test_write_rows_touches_only_its_slots(device):
    pages = torch.zeros(3, S, 2, K, D, device=device)
    rows = torch.randn(2, 2 * K, D, device=device)
    write_rows(pages, torch.tensor([5, 11], device=device), rows)
    assert torch.equal(pages[1, 1].reshape(2 * K, D), rows[0]) and torch.equal(pages[2, 3, 1], rows[1, K:])
    assert pages.abs().sum(dim=(2, 3, 4)).count_nonzero() == 2
