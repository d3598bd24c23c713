"""Attention over pages, of rows that decode and of prompts, against a plain softmax in fp64 over contiguous rows.

Whatever is no row of a sequence is NaN: free pages, the dummy page, and what lies behind a sequence in its last page.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from octavo.kernels import decode_attention as decode_attention_module
from octavo.kernels.decode_attention import decode_attention, decode_attention_ref
from octavo.kernels.pages import write_rows
from octavo.kernels.prefill_attention import prefill_attention, prefill_attention_ref, prefill_tiles
from octavo.kernels.rope import rope_table
from octavo.kernels.rows import Rows

# fp32: the order of a sum. Otherwise the weights are rounded, and the result: half an ulp each, or a whole one in bf16,
# where the interpreter cuts off. The reference rounds the scores as well.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
REFERENCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
CASES = pytest.mark.parametrize(
    "H, K, D, S, dtype",  # query heads, key heads, their width, rows per page
    [
        *((8, 2, 16, 4, dtype) for dtype in TOLERANCES),
        (3, 1, 32, 16, torch.float32),
        (2, 2, 64, 8, torch.bfloat16),
        (20, 1, 32, 16, torch.float16),
        (4, 1, 128, 16, torch.float32),
        (4, 1, 128, 16, torch.bfloat16),
    ],
    ids=str,
)
SMALL = (4, 2, 16, 16)


class Paged:
    """Sequences of the given lengths, scattered over pages; `rows` and `decode` are what the ops are told of them."""

    def __init__(self, lengths: Sequence[int], heads, dtype, device, *, nothing: float = float("nan")):
        self.lengths, self.device, self.dtype = lengths, device, dtype
        self.H, self.K, self.D, self.S = heads
        needed = [-(-length // self.S) for length in lengths]
        numbers = (torch.randperm(sum(needed) + 3) + 1).to(torch.int32)
        wide = torch.full((len(lengths), max(needed) + 5), -7, dtype=torch.int32)  # what is outside is no page
        self.table = wide[:, 2:-2]
        self.table.zero_()
        for line, own in zip(self.table, numbers.split([*needed, 3]), strict=False):
            line[: len(own)] = own
        self.table = wide.to(device)[:, 2:-2]
        shape = (len(numbers) + 1, self.S, 2, self.K, self.D)
        self.pages = torch.full(shape, nothing, dtype=dtype, device=device)
        self.kv = [torch.randn(length, 2 * self.K, self.D).to(device, dtype) for length in lengths]
        for owner, rows in enumerate(self.kv):
            self.write(owner, rows)

    def write(self, owner: int, rows: torch.Tensor) -> None:
        r = torch.arange(len(rows), device=self.device)
        write_rows(self.pages, self.table[owner, r // self.S].long() * self.S + r % self.S, rows)

    def queries(self, N: int) -> torch.Tensor:
        """As the attention gets them: a view of what the projection wrote."""
        return torch.randn(N, self.H + 2 * self.K, self.D).to(self.device, self.dtype)[:, : self.H]

    def decode(self, deterministic: bool = False) -> Rows:
        positions = torch.tensor([length - 1 for length in self.lengths], dtype=torch.int32)
        return self._rows(
            positions, torch.arange(len(positions)), deterministic=deterministic,
            counters=torch.zeros(len(positions) * self.K, dtype=torch.int32, device=self.device),
        )  # fmt: skip

    def prefill(self, new: Sequence[int]) -> Rows:
        """The last `new` rows of each sequence."""
        spans = list(zip(new, self.lengths, strict=True))
        positions = torch.cat([torch.arange(context - n, context) for n, context in spans])
        owner = torch.repeat_interleave(torch.arange(len(new)), torch.tensor(new))
        return self._rows(positions, owner, spans=spans, tiles=prefill_tiles(spans, self.device))

    def _rows(self, positions, owner, **others) -> Rows:
        rope = rope_table(1, self.D, 1e6, self.device, self.dtype)
        positions, owner = (x.to(self.device, torch.int32) for x in (positions, owner))
        return Rows(positions, owner, self.table, rope, self.S, **others)

    def attended(self, q: torch.Tensor, owner: int) -> torch.Tensor:
        """q: [n, H, D], of the sequence's last n rows."""
        n, length, G = len(q), self.lengths[owner], self.H // self.K
        k, v = (x.double().repeat_interleave(G, 1) for x in self.kv[owner].split(self.K, 1))
        scores = torch.einsum("nhd,lhd->hnl", q.double(), k) / self.D**0.5
        later = torch.arange(length)[None] > torch.arange(length - n, length)[:, None]
        weights = scores.masked_fill(later.to(q.device), -torch.inf).softmax(-1)
        return torch.einsum("hnl,lhd->nhd", weights, v)


def close(got: torch.Tensor, want: torch.Tensor, tolerances=TOLERANCES) -> None:
    tolerance = tolerances[got.dtype]
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


def all_attended(paged: Paged, q: torch.Tensor, new: Sequence[int]) -> torch.Tensor:
    return torch.cat([paged.attended(part, owner) for owner, part in enumerate(q.split(list(new)))])


@pytest.fixture(params=[1, 8], ids="{}SM".format)
def multiprocessors(request, monkeypatch):
    """How many decide how the rows are split; the interpreter is slow with many programs."""
    monkeypatch.setattr(decode_attention_module, "multiprocessors", lambda device: request.param)
    return request.param


@CASES
def test_decode(H, K, D, S, dtype, triton_device, multiprocessors):
    """Lengths around a page and over several blocks."""
    torch.manual_seed(0)
    paged = Paged([1, 15, 300, 16, 17], (H, K, D, S), dtype, triton_device)
    q, rows = paged.queries(5), paged.decode()
    got = decode_attention(q, paged.pages, rows)
    close(got, all_attended(paged, q, [1] * 5))
    assert got.is_contiguous()
    assert not rows.counters.any()
    assert torch.equal(decode_attention(q, paged.pages, rows), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decode_with_more_splits_than_are_put_together_at_once(dtype, triton_device):
    """And with sums of exponentials beyond fp32, which the greatest of a later split may overtake."""
    torch.manual_seed(0)
    paged = Paged([700], (8, 1, 16, 16), dtype, triton_device)
    q, rows = 40 * paged.queries(1), paged.decode()
    got, want = decode_attention(q, paged.pages, rows), paged.attended(q, 0)
    tolerance = max(TOLERANCES[dtype], 1e-4)  # an ulp of a score above 100 is 1e-5 of its exponential
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)
    assert not rows.counters.any()


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's word on the idle lanes' NaN
def test_decode_beside_idle_lanes(triton_device):
    """An idle lane stands at row 0 of the dummy page: what it reads is nobody's, also when that is NaN."""
    torch.manual_seed(0)
    paged = Paged([1, 40, 1, 70, 1], SMALL, torch.float32, triton_device)
    idle = [0, 2, 4]
    paged.table[idle] = 0
    q, rows = paged.queries(5), paged.decode()
    got = decode_attention(q, paged.pages, rows)
    for lane in 1, 3:
        close(got[lane, None], paged.attended(q[lane, None], lane))
    assert got[idle].isnan().all()
    assert not rows.counters.any()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_decode_alone_equals_decode_among_others_when_deterministic(dtype, triton_device, monkeypatch):
    monkeypatch.setattr(
        decode_attention_module, "multiprocessors", lambda device: 8
    )  # else 16 splits alone, 4 together
    torch.manual_seed(0)
    lengths = [3, 100, 33, 64, 270]
    paged = Paged(lengths, (4, 1, 16, 16), dtype, triton_device)
    q = paged.queries(5)
    together = decode_attention(q, paged.pages, paged.decode(deterministic=True))
    close(together, all_attended(paged, q, [1] * 5))
    for lane in range(5):
        rows = paged.decode(deterministic=True)
        rows.positions, rows.table = rows.positions[lane, None], rows.table[lane, None]
        assert torch.equal(decode_attention(q[lane, None], paged.pages, rows)[0], together[lane])


@CASES
def test_prefill(H, K, D, S, dtype, triton_device):
    """Prompts of one row, of less and more than a tile, whole and behind a prefix that was there."""
    torch.manual_seed(0)
    lengths, new = [1, 16, 9, 37, 100], [1, 16, 5, 37, 19]
    paged = Paged(lengths, (H, K, D, S), dtype, triton_device)
    q = paged.queries(sum(new))
    got = prefill_attention(q, paged.pages, paged.prefill(new))
    close(got, all_attended(paged, q, new))
    assert got.is_contiguous()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_row_of_a_prompt_is_the_same_in_any_chunk_and_company(dtype, triton_device):
    """A prompt of 75 rows, at once between two others; and alone, in chunks of 20, 1 and 54 rows."""
    torch.manual_seed(0)
    paged = Paged([50, 75, 3], SMALL, dtype, triton_device)
    q = paged.queries(30 + 75 + 3)
    among = prefill_attention(q, paged.pages, paged.prefill([30, 75, 3]))[30:105]
    done, chunks = 0, []
    for n in 20, 1, 54:
        paged.lengths = [50, done + n, 3]
        rows = paged.prefill([1, n, 1])
        only = q[30 + done : 30 + done + n]
        chunks.append(prefill_attention(torch.cat((q[:1], only, q[:1])), paged.pages, rows)[1:-1])
        done += n
    assert torch.equal(torch.cat(chunks), among)


def test_tiles_cover_every_row_once():
    tiles = prefill_tiles([(5, 5), (16, 40), (33, 33)], torch.device("cpu"))
    want = [[0, 0, 5, 0], [1, 5, 16, 24], [2, 21, 16, 0], [2, 37, 16, 16], [2, 53, 1, 32]]
    assert tiles.tolist() == want and tiles.dtype == torch.int32


@pytest.mark.parametrize("dtype", REFERENCE, ids=str)
@pytest.mark.parametrize("heads", [(8, 2, 16, 4), (3, 1, 64, 16)], ids=str)
def test_references(heads, dtype, device):
    """Where pages are zeros before they are written, as on the CPU: what has been there counts for nothing."""
    torch.manual_seed(0)
    lengths, new = [1, 9, 37, 16], [1, 4, 37, 15]
    paged = Paged(lengths, heads, dtype, device, nothing=1e4)
    q = paged.queries(4)
    close(decode_attention_ref(q, paged.pages, paged.decode()), all_attended(paged, q, [1] * 4), REFERENCE)
    q = paged.queries(sum(new))
    close(prefill_attention_ref(q, paged.pages, paged.prefill(new)), all_attended(paged, q, new), REFERENCE)


def test_write_rows_touches_only_its_slots(device):
    S, K, D = 4, 2, 16
    pages = torch.zeros(3, S, 2, K, D, device=device)
    rows = torch.randn(2, 2 * K, D, device=device)
    write_rows(pages, torch.tensor([5, 11], device=device), rows)
    assert torch.equal(pages[1, 1].reshape(2 * K, D), rows[0]) and torch.equal(pages[2, 3, 1], rows[1, K:])
    assert pages.abs().sum(dim=(2, 3, 4)).count_nonzero() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("context", [1, 16, 37, 300])
def test_where_the_pages_lie_changes_no_bit_of_a_single_lane(context, dtype):
    """The reference takes two ways; a request repeated must not hang on which pages it gets."""
    torch.manual_seed(context)
    count, (H, K, D) = -(-context // 16), (4, 2, 64)
    query, content = torch.randn(1, H, D).to(dtype), torch.randn(count, 16, 2, K, D).to(dtype)
    rope, found = torch.zeros(1, 2, D, dtype=dtype), []
    for places in (range(1, count + 1), range(2 * count + 2, count + 2, -1)):
        pages = torch.full((3 * count + 3, 16, 2, K, D), torch.nan, dtype=dtype)
        pages[list(places)] = content
        table = torch.tensor([list(places)], dtype=torch.int32)
        rows = Rows(torch.tensor([context - 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32), table, rope, 16)
        assert (rows.span is None) == (count > 1 and places.step < 0)
        found.append(decode_attention_ref(query, pages, rows))
    assert torch.equal(*found) and not found[0].isnan().any()
