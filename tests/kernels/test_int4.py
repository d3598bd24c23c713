"""4-bit weights against fp64 of the same numbers: no further from it than the product with W unpacked beforehand."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels import int4, int4_layout, linear_tile
from octavo.kernels.int4 import Int4, path
from octavo.kernels.int4_tile import step_bytes, tile_of
from octavo.kernels.launch import INTERPRETED
from octavo.kernels.swiglu import swiglu_ref

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-6
NF4 = [-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
       0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0]  # fmt: skip
PARTS = [
    {},
    {"norm": True},
    {"residual": True},
    {"norm": True, "swiglu": True},
    {"norm": True, "residual": True, "swiglu": True},
]


def matrix(OUT, IN, group, device=CPU, levels=None, offset=True, seed=0):
    """The packed matrix and, by the formula, what it stands for: [OUT, IN] fp64."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (OUT, IN), generator=random, dtype=torch.uint8)
    scale = (torch.rand(OUT, IN // group, generator=random) * 0.01 + 1e-3).half().float()
    shift = (-scale * torch.randint(5, 11, scale.shape, generator=random)).half().float() if offset else None
    table = None if levels is None else torch.tensor(levels)
    numbers = codes.double() if table is None else table.double()[codes.int()]
    w = numbers * scale.double().repeat_interleave(group, 1)
    w = w if shift is None else w + shift.double().repeat_interleave(group, 1)
    return Int4.pack(codes, scale, shift, table, device), w.to(device)


def part_of_wider(random, rows, columns, device, dtype):
    """Between columns which nobody may read."""
    wide = torch.full((rows, columns + 24), torch.nan)
    wide[:, 8 : columns + 8] = torch.randn(rows, columns, generator=random)
    return wide.to(device, dtype)[:, 8 : columns + 8]


def operands(N, IN, OUT, dtype, device, norm=False, residual=False, swiglu=False, norm_dtype=None, seed=1):
    random = torch.Generator().manual_seed(seed)
    x = part_of_wider(random, N, IN, device, dtype)
    named = {"swiglu": swiglu}
    if norm:
        named |= {"norm": torch.randn(IN, generator=random).to(device, norm_dtype or dtype), "eps": EPS}
    if residual:
        named |= {"residual": part_of_wider(random, N, OUT, device, dtype)}
    return x, named


def one_by_one(x, w, swiglu=False, norm=None, eps=0.0, residual=None):
    """Each operation rounds to x.dtype, the product works in w's; in fp64 the truth."""
    h = x if norm is None else F.rms_norm(x, norm.shape, norm.to(x.dtype), eps)
    y = (h.to(w.dtype) @ w.t()).to(x.dtype)
    y = swiglu_ref(y) if swiglu else y
    return y if residual is None else residual + y


def check(N, IN, OUT, group, dtype, device, deterministic=False, slack=2.0, levels=None, offset=True, **parts):
    """slack: how far the errors of two equally exact ways may differ by chance, over N * OUT numbers."""
    rows = OUT * (1 + parts.get("swiglu", False))
    packed, w = matrix(rows, IN, group, device, levels, offset)
    x, named = operands(N, IN, OUT, dtype, device, **parts)
    before = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in named.items()}
    got = packed.linear(x, **named, deterministic=deterministic)
    assert got.dtype == dtype and got.shape == (N, OUT)
    if "residual" in named:
        assert got is named["residual"]
    exact = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in before.items()}
    truth = one_by_one(x.double(), w, **exact)
    skinny = path(N, dtype, deterministic) == "skinny" and levels is None
    separate = one_by_one(x, w.float() if skinny else w.to(dtype).float(), **before)
    ours, theirs = ((y.double() - truth).square().mean().sqrt().item() for y in (got, separate))
    if INTERPRETED.value and dtype == torch.bfloat16:  # its casts to bf16 drop bits where the GPU rounds: of y, W, h
        slack = 4 if skinny else 8
    assert ours <= theirs * slack + (1e-6 if dtype == torch.float32 else 0), (ours, theirs)


@pytest.mark.parametrize(
    "parts, dtype",
    [(parts, torch.float16) for parts in PARTS]
    + [(parts, dtype) for parts in (PARTS[0], PARTS[-1]) for dtype in (torch.float32, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize(
    "N, IN, OUT, group", [(1, 288, 21, 32), (6, 256, 24, 128), (11, 192, 24, 64), (19, 160, 40, 32)]
)
def test_int4(N, IN, OUT, group, parts, dtype, triton_device):
    """One row, 8 rows, 16 rows, unpacked in registers (fp32: in memory)."""
    check(N, IN, OUT, group, dtype, triton_device, **parts)


@pytest.mark.parametrize("N, group", [(1, 128), (3, 64), (8, 32), (16, 384)])
def test_only_x_and_y_are_rounded(N, group, triton_device):
    """Up to 16 rows: as near as an exact product that is rounded at the end."""
    dtype = torch.float16 if INTERPRETED.value else torch.bfloat16
    check(N, 384, 100, group, dtype, triton_device, slack=1.05)


@pytest.mark.parametrize("group", [16, 32, 64, 96, 128, 192, 384, 576, 1152])
@pytest.mark.parametrize("N", [1, 17])
def test_every_group(group, N, triton_device):
    """Powers of two, and some that are not; down to parts of what a warp takes in a step, up to a whole row."""
    check(N, 1152, 20, group, torch.float16, triton_device)


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64])
def test_every_batch_size(N, triton_device):
    check(N, 96, 40, 32, torch.float16, triton_device, norm=True, residual=True)


@pytest.mark.parametrize("N, group", [(1, 16), (2, 32), (4, 16), (8, 16), (8, 32), (16, 16)])
def test_small_groups(N, group, triton_device):
    """With the norm, whose own sums go through the same slices."""
    check(N, 160, 24, group, torch.float16, triton_device, norm=True, swiglu=True)


@pytest.mark.parametrize("IN", [32, 160, 544, 1056])
def test_rows_that_end_within_a_block(IN, triton_device):
    check(1, IN, 18, 32, torch.float16, triton_device, norm=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 4, 16, 18])
@pytest.mark.parametrize("offset", [False, True])
def test_levels(offset, N, dtype, triton_device):
    check(N, 192, 24, 64, dtype, triton_device, levels=NF4, offset=offset)


def test_codes_without_an_offset(triton_device):
    for dtype in DTYPES:
        check(3, 128, 24, 32, dtype, triton_device, offset=False)


@pytest.mark.parametrize("N", [1, 16])
def test_a_norm_in_fp32_is_not_rounded(N, triton_device):
    """Between two bf16 numbers it makes a difference in h."""
    check(N, 128, 24, 128, torch.bfloat16, triton_device, norm=True, norm_dtype=torch.float32)
    packed, w = matrix(24, 128, 128, triton_device)
    x = torch.full((N, 128), 1.5, device=triton_device, dtype=torch.float16)
    norm = torch.full((128,), 1 + 2**-11, device=triton_device)  # which fp16 rounds down, and its 1.5 fold up
    got = packed.linear(x, norm=norm, eps=0.0).double()
    rounded = packed.linear(x, norm=norm.half(), eps=0.0).double()
    truth = w.sum(1) * norm[0].double()
    assert (got - truth).abs().mean() < (rounded - truth).abs().mean()


@pytest.mark.parametrize("N", [1, 16, 35])
def test_deterministic_is_as_exact(N, triton_device):
    check(N, 160, 40, 32, torch.float16, triton_device, deterministic=True, norm=True, swiglu=True)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", [{"residual": True}, {"norm": True, "swiglu": True}], ids="+".join)
def test_deterministic_rows_do_not_see_each_other(dtype, parts, triton_device):
    """A row alone gives bit for bit what it gives among 15 or 32 others, in any place, whatever they hold."""
    packed, _ = matrix(16 * (1 + parts.get("swiglu", False)), 160, 32, triton_device)
    x, named = operands(33, 160, 16, dtype, triton_device, **parts)
    residual = named.pop("residual", None)

    def run(rows):
        own = {} if residual is None else {"residual": residual[rows]}
        return packed.linear(x[rows], **named, **own, deterministic=True)

    everyone = run(list(range(33)))
    x[1] = torch.inf
    some = run([5, 1, 32, *range(6, 19)])
    for n, among_16 in ((5, some[0]), (32, some[2]), (18, some[-1])):
        assert torch.equal(everyone[n], among_16)
        assert torch.equal(everyone[n], run([n])[0])


def test_many_rows_are_unpacked_piece_by_piece(triton_device, monkeypatch):
    monkeypatch.setattr(int4, "SCRATCH", 20_000)
    for parts in ({}, {"residual": True}, {"norm": True, "swiglu": True}):
        check(17, 96, 150, 32, torch.float32, triton_device, **parts)
        monkeypatch.setattr(int4, "path", lambda *_: "dense")
        check(17, 96, 150, 32, torch.float16, triton_device, **parts)
        monkeypatch.undo()
        monkeypatch.setattr(int4, "SCRATCH", 20_000)


def test_shares_of_the_columns_add_up(triton_device):
    """9 blocks of columns, of two programs; rows of the residual are strided."""
    check(20, 1152, 24, 128, torch.float16, triton_device, residual=True)
    check(20, 1152, 24, 128, torch.bfloat16, triton_device, swiglu=True)


@pytest.mark.parametrize("levels", [None, NF4])
@pytest.mark.parametrize("group, IN", [(16, 96), (32, 160), (96, 96), (128, 256)])
def test_dense_is_the_formula_rounded_once(group, IN, levels, triton_device):
    packed, w = matrix(70, IN, group, triton_device, levels)
    assert packed.shape == (70, IN)
    torch.testing.assert_close(packed.dense(torch.float32).double(), w, rtol=2e-7, atol=1e-9)
    if levels is None:
        assert torch.equal(packed.dense(torch.float16), w.half())


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_the_reference_on_the_cpu(parts):
    """Without a GPU: exact products of the same h."""
    for dtype in DTYPES:
        check(3, 96, 24, 32, dtype, CPU, **parts)
        check(2, 128, 24, 64, dtype, CPU, levels=NF4, deterministic=True, **parts)


@pytest.mark.parametrize("IN", [32, 96, 128, 352])
def test_codes_come_back(IN):
    codes = torch.randint(0, 16, (5, IN), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    words = int4_layout.pack_words(codes)
    assert words.shape == (5, -(-IN // 128) * 16) and words.dtype == torch.int32
    assert torch.equal(int4_layout.unpack_words(words, IN), codes)


@pytest.mark.parametrize("column, word, bit", [(0, 0, 0), (1, 0, 16), (2, 4, 0), (8, 0, 4), (32, 1, 0), (127, 15, 28)])
def test_where_a_code_lies(column, word, bit):
    codes = torch.zeros(1, 256, dtype=torch.uint8)
    codes[0, 128 + column] = 9
    words = int4_layout.pack_words(codes)[0].tolist()
    assert [w & 0xFFFFFFFF for w in words] == [0] * (16 + word) + [9 << bit] + [0] * (15 - word)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_scales_keep_the_bits_of_fp16_whatever_their_size(size):
    """Also those that are 2^-14 of the largest, where fp16 numbers near zero would have lost theirs."""
    few_bits = torch.tensor([[1.0, 0.75, 2.0**-14 * 1.5, -0.3]]).half().float()
    scale = few_bits * 2.0 ** torch.tensor(size).log2().round()
    pairs, unit = int4_layout.pack_pairs(scale, 16 * scale)
    back, offset = int4_layout.unpack_pairs(pairs, unit, 4)
    assert torch.equal(back, scale) and torch.equal(offset, 16 * scale)
    nothing, unit = int4_layout.pack_pairs(torch.zeros(2, 3), None)
    assert not nothing.any() and nothing.shape == (2, 4) and unit == 1


def test_bytes_are_counted():
    packed, _ = matrix(32, 256, 128)
    assert packed.nbytes == 32 * (256 // 2 + 4 * 4)


def test_paths():
    assert [path(N, torch.bfloat16, False) for N in (1, 16, 17, 256, 257)] == ["skinny"] * 2 + ["gemm"] * 2 + ["dense"]
    assert path(300, torch.bfloat16, True) == "skinny" and path(20, torch.float32, False) == "dense"


@pytest.mark.parametrize("OUT, IN", [(2560, 4096), (2560, 9728), (6144, 2560), (9728, 2560)])
@pytest.mark.parametrize("N", [1, 2, 4, 8, 16])
def test_tiles_keep_the_memory_of_an_h200_busy(N, OUT, IN):
    """33 KB of codes on their way for each multiprocessor: 4.3 TB/s for 1 us; or all that there are."""
    swiglu = OUT == 9728
    tile = tile_of(N, OUT, IN, 128, swiglu, IN == 2560, torch.bfloat16, CPU, False)
    buffer = step_bytes(tile, swiglu, IN == 2560, 128, 2)
    programs = -(-OUT // tile.rows)
    at_once = min(-(-programs // 132), 227 * 1024 // ((tile.stages - 1) * buffer + 1024), 64 // tile.warps)
    step = tile.rows * (1 + swiglu) * tile.warps * tile.span // 2
    row = tile.rows * (1 + swiglu) * IN // 2
    assert at_once >= 1 and tile.slices * tile.block_n in (8, 16) and tile.span % 128 == 0
    assert min(programs, at_once * 132) / 132 * min(row, step * (tile.stages - 1)) > min(33e3, OUT * IN / 2 / 132)


@pytest.mark.parametrize("group", [16, 64, 96, 128])
@pytest.mark.parametrize("OUT", [40, 2560, 9728])
def test_tiles_fit_into_the_memory_of_small_gpus(OUT, group, monkeypatch):
    """99 KB a program on 8.6, 8.9 and 12.0."""
    monkeypatch.setattr(linear_tile, "_shared_memory", lambda device: 99 * 1024)
    for N, dtype, swiglu in itertools.product((1, 2, 4, 8, 16), DTYPES, (False, True)):
        tile = tile_of(N, OUT, 2304, group, swiglu, True, dtype, CPU, False)
        assert (tile.stages - 1) * step_bytes(tile, swiglu, True, group, dtype.itemsize) <= 97 * 1024
