"""Products with int8 weights against the same weights dense, in fp64: no further from it than a dense product."""

import os
import subprocess
import sys

import pytest
import torch

from octavo.kernels import linear_tile
from octavo.kernels.byte_dense import byte_dense_ref
from octavo.kernels.byte_linear import path
from octavo.kernels.byte_tile import byte_tile, step_bytes
from octavo.kernels.int8 import Int8

from .dense_product import PARTS, check, operands

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def matrix(OUT, IN, group, offset=False, seed=0):
    """Codes with both ends of their range, scales that differ by more than the range of a byte."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (OUT, IN), generator=random).to(torch.int8)
    codes[0, :2] = torch.tensor([-128, 127])
    G = IN // group
    scale = 1e-4 * torch.exp(torch.randn(OUT, G, generator=random))
    offsets = torch.randn(OUT, G, generator=random) * 4e-3 if offset else None
    return codes, scale, offsets


def exactly(codes, scale, offset):
    """W in fp64."""
    group = codes.shape[1] // scale.shape[1]
    w = codes.double() * scale.double().repeat_interleave(group, 1)
    return w if offset is None else w + offset.double().repeat_interleave(group, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("N, IN, OUT", [(1, 600, 13), (2, 123, 24), (9, 300, 21), (17, 160, 40)])
def test_one_scale_a_row(N, IN, OUT, parts, dtype, triton_device):
    """All kernels; columns that no step divides, and no 16 bytes."""
    codes, scale, _ = matrix(OUT * (1 + parts.get("swiglu", False)), IN, IN)
    packed = Int8.pack(codes, scale, None, triton_device)
    assert packed.shape == codes.shape and packed.nbytes <= codes.numel() + codes.shape[0] * (4 + 15)
    check(packed, exactly(codes, scale, None), N, dtype, triton_device, **parts)


@pytest.mark.parametrize("offset", [False, True], ids=["scale", "offset"])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 384])
@pytest.mark.parametrize("N, dtype", [(1, torch.float32), (1, torch.float16), (5, torch.float16), (20, torch.float16)])
def test_groups(N, dtype, group, offset, triton_device):
    """Scales are kept in fp16, to 2^-11 of each: the weights that count are those of `dense`."""
    case = matrix(20, 384, group, offset)
    packed = Int8.pack(*case, triton_device)
    dense, exact = byte_dense_ref(packed.weight, torch.float32), exactly(*case).to(triton_device)
    assert (dense - exact).norm() <= 2**-11 * exact.norm()
    slack = 300 if offset and dtype == torch.float32 else 1.3  # the offset takes 2^-9 of a scale with it
    check(packed, dense.double(), N, dtype, triton_device, slack=slack, norm=True)


@pytest.mark.parametrize("N", [1, 5, 20])
def test_groups_of_a_pair_of_matrices(N, triton_device):
    packed = Int8.pack(*matrix(40, 192, 32, True), triton_device)
    dense = byte_dense_ref(packed.weight, torch.float32).double()
    check(packed, dense, N, torch.float16, triton_device, residual=True, swiglu=True, slack=2)


@pytest.mark.parametrize("N", [1, 3, 4, 8, 15, 16, 33, 64, 130])
def test_every_batch_size(N, triton_device):
    codes, scale, _ = matrix(40, 96, 96)
    packed = Int8.pack(codes, scale, None, triton_device)
    check(packed, exactly(codes, scale, None), N, torch.float16, triton_device, residual=True)


def test_columns_shared_by_several_programs(triton_device):
    codes, scale, _ = matrix(24, 1300, 1300)
    packed = Int8.pack(codes, scale, None, triton_device)
    check(packed, exactly(codes, scale, None), 18, torch.float16, triton_device, residual=True)


@pytest.mark.parametrize("N", [1, 35])
def test_deterministic_is_as_exact(N, triton_device):
    codes, scale, _ = matrix(32, 96, 96)
    packed = Int8.pack(codes, scale, None, triton_device)
    exact = exactly(codes, scale, None)
    check(packed, exact, N, torch.float16, triton_device, deterministic=True, norm=True, swiglu=True)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("group", [96, 32])
def test_deterministic_rows_do_not_see_each_other(group, triton_device):
    """A row alone gives bit for bit what it gives among others, in any place, whatever they hold."""
    packed = Int8.pack(*matrix(16, 96, group), triton_device)
    x, named = operands(33, 96, 16, torch.bfloat16, triton_device, norm=True)

    def run(rows):
        return packed.linear(x[rows], **named, deterministic=True)

    everyone = run(list(range(33)))
    x[1] = torch.inf
    some = run([5, 1, 32, *range(6, 19)])
    for n, among_16 in ((5, some[0]), (32, some[2]), (18, some[-1])):
        assert torch.equal(everyone[n], among_16)
        assert torch.equal(everyone[n], run([n])[0])


@pytest.mark.parametrize("group, offset", [(600, False), (600, True), (40, False)])
def test_a_group_that_is_no_power_of_two(group, offset, triton_device):
    case = matrix(24, 600, group, offset)
    if group == 40:
        with pytest.raises(AssertionError, match="40 columns"):
            Int8.pack(*case, triton_device)
        return
    packed = Int8.pack(*case, triton_device)
    dense, exact = byte_dense_ref(packed.weight, torch.float32).double(), exactly(*case).to(triton_device)
    assert (dense - exact).norm() <= 2**-11 * exact.norm()
    check(packed, dense, 3, torch.float16, triton_device)


def test_small_and_large_scales_keep_their_bits(triton_device):
    """As fp16 they would be zero and infinite."""
    codes = torch.full((2, 64), 100, dtype=torch.int8)
    for factor in (1e-12, 1e12):
        scale = torch.tensor([[1.0, 1 / 3], [1e-3, 0.0]]) * factor
        dense = Int8.pack(codes, scale, None, triton_device).dense(torch.float32).cpu()
        torch.testing.assert_close(dense, (codes * scale.repeat_interleave(32, 1)), rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [(13, 600, 600), (10, 320, 16, True)], ids=str)
def test_dense_on_the_device_is_the_reference(case, dtype, triton_device):
    packed = Int8.pack(*matrix(*case), triton_device)
    one_ulp = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(packed.dense(dtype), byte_dense_ref(packed.weight, dtype), rtol=one_ulp, atol=1e-5)


def test_a_cpu_computes_the_reference():
    codes, scale, _ = matrix(40, 96, 32)
    packed = Int8.pack(codes, scale, None, torch.device("cpu"))
    check(packed, packed.dense(torch.float32).double(), 3, torch.float32, torch.device("cpu"), norm=True, residual=True)


def test_which_kernel_for_how_many_rows():
    bf16 = torch.bfloat16
    assert [path(N, bf16, False) for N in (1, 2, 16, 17, 512, 513)] == [
        *("gemv", "skinny", "skinny", "wide", "wide", "dense")
    ]
    assert {path(N, bf16, True) for N in (1, 16, 100, 1000)} == {"skinny"}
    assert path(17, torch.float32, False) == "dense"


SHAPES = {(2560, 4096): {}, (2560, 9728): {}, (6144, 2560): {"norm": True},
          (9728, 2560): {"norm": True, "swiglu": True}, (8208, 2560): {"norm": True}}  # fmt: skip


@pytest.mark.parametrize("OUT, IN", SHAPES)
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_tiles_keep_the_memory_of_an_h200_busy(depth, OUT, IN):
    """33 KB of W on their way for each multiprocessor while a program waits, or all that is left of its rows."""
    parts = {"swiglu": False, "norm": False} | SHAPES[OUT, IN]
    x = torch.empty(depth, IN, dtype=torch.bfloat16)
    norm = torch.empty(IN) if parts["norm"] else None
    tile = byte_tile(depth, OUT, parts["swiglu"], norm, x, 0)
    programs = -(-OUT // tile.rows)
    lines = tile.rows * (1 + parts["swiglu"])
    columns = min(IN, (512 if depth == 1 else 64) * (tile.warps if tile.side_by_side else 1) * (tile.stages - 1))
    buffer = step_bytes(depth, tile.rows, tile.warps, parts["swiglu"], norm, x, 0) if depth > 1 else 16384
    at_once = min(-(-programs // 132), 227 * 1024 // ((tile.stages - 1) * buffer + 1024), 64 // tile.warps)
    assert at_once >= 1 and min(programs, at_once * 132) / 132 * lines * columns > 33e3


@pytest.mark.parametrize("OUT, IN", [(40, 384), *SHAPES])
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_tiles_fit_into_the_memory_of_small_gpus(groups, OUT, IN, monkeypatch):
    """99 KB a program on 8.6, 8.9 and 12.0."""
    monkeypatch.setattr(linear_tile, "_shared_memory", lambda device: 99 * 1024)
    x, norm = torch.empty(16, IN, dtype=torch.bfloat16), torch.empty(IN)
    for swiglu in (False, True):
        tile = byte_tile(16, OUT, swiglu, norm, x, groups)
        buffer = step_bytes(16, tile.rows, tile.warps, swiglu, norm, x, groups)
        assert tile.stages >= 2 and (tile.stages - 1) * buffer <= 97 * 1024


COMPILE_FOR_TWO_BATCHES = """
from functools import partial
from octavo.tools import kernel_cases, kernel_report

for call in (partial(kernel_cases.int4_layer, "o"), partial(kernel_cases.byte_layer, "int8", "o")):
    kernels = [{kernel.hash for _, kernel, _ in kernel_report.launches(call, (N,), 90)} for N in (24, 32)]
    print(len(kernels[0]), kernels[0] == kernels[1])
"""


def test_another_number_of_rows_needs_no_compiler(tmp_path):
    """Prompts have any number of rows: 24 and 32 run the same binaries, although 16 divides one of them."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    (tmp_path / "compile.py").write_text(COMPILE_FOR_TWO_BATCHES)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "compile.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "True", "2", "True"]
