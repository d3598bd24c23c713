"""The linear layer's kernels against fp64: no further from it than PyTorch's own operations one after the other."""

import json

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels import linear_tile, tuned
from octavo.kernels.cpu_linear import arrange
from octavo.kernels.launch import INTERPRETED
from octavo.kernels.linear import linear
from octavo.kernels.linear_tile import Tile
from octavo.kernels.swiglu import swiglu_ref

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-6


def operands(N, IN, OUT, dtype, device, norm=False, residual=False, swiglu=False, seed=0):
    """x, W, and the named operands of `linear`, on odd strides: every matrix is a part of a wider one."""
    random = torch.Generator().manual_seed(seed)

    def normal(rows, columns):
        wide = torch.randn(rows, columns + 24, generator=random).to(device, dtype)
        return wide[:, 8 : columns + 8]

    x, weight = normal(N, IN), normal(OUT * (1 + swiglu), IN).mul_(IN**-0.5)
    named = {"swiglu": swiglu}
    if norm:
        named |= {"norm": torch.randn(IN, generator=random).to(device, dtype), "eps": EPS}
    if residual:
        named |= {"residual": normal(N, OUT)}
    return x, weight, named


def one_by_one(x, weight, swiglu=False, norm=None, eps=0.0, residual=None):
    """The same in separate operations of x's dtype; in fp64 the truth."""
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm, eps)
    y = F.linear(x, weight)
    y = swiglu_ref(y) if swiglu else y
    return y if residual is None else residual + y


def errors(got, x, weight, named):
    """Root mean square distance from fp64: of `got`, and of separate operations."""
    exact = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in named.items()}
    truth = one_by_one(x.double(), weight.double(), **exact)
    separate = one_by_one(x, weight, **named)
    return ((y.double() - truth).square().mean().sqrt().item() for y in (got, separate))


def check(N, IN, OUT, dtype, device, deterministic=False, slack=1.3, **parts):
    """slack: how far the errors of two equally exact ways may differ by chance, over N * OUT numbers."""
    x, weight, named = operands(N, IN, OUT, dtype, device, **parts)
    residual = named.get("residual")
    kept = None if residual is None else residual.clone()
    got = linear(x, weight, **named, deterministic=deterministic)
    assert got.dtype == dtype and got.shape == (N, OUT)
    if residual is not None:
        assert got is residual
        got, named["residual"] = got.clone(), kept
    ours, separate = errors(got, x, weight, named)
    if INTERPRETED.value and dtype == torch.bfloat16:
        slack = 3  # its cast to bf16 drops bits where the GPU rounds
    assert ours <= separate * slack + (1e-6 if dtype == torch.float32 else 0), (ours, separate)


PARTS = [
    {},
    {"norm": True},
    {"residual": True},
    {"norm": True, "swiglu": True},
    {"norm": True, "residual": True, "swiglu": True},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("N, IN, OUT", [(1, 600, 37), (2, 123, 24), (9, 300, 21), (17, 64, 40)])
def test_linear(N, IN, OUT, parts, dtype, triton_device):
    """One row, 8 rows, 16 rows, cuBLAS; more columns than one step takes, and fewer."""
    check(N, IN, OUT, dtype, triton_device, **parts)


@pytest.mark.parametrize("N", [1, 3, 4, 5, 7, 8, 16])
def test_every_batch_size(N, triton_device):
    check(N, 96, 40, torch.float16, triton_device, norm=True, residual=True)


@pytest.mark.parametrize("N", [1, 8, 16])
@pytest.mark.parametrize("parts", [{"norm": True}, {"norm": True, "swiglu": True}], ids="+".join)
def test_no_further_from_the_truth_than_separate_operations(N, parts, triton_device):
    dtype = torch.float16 if INTERPRETED.value else torch.bfloat16
    check(N, 256, 512, dtype, triton_device, slack=1.03, **parts)


@pytest.mark.parametrize("N", [1, 16, 35])
def test_deterministic_is_as_exact(N, triton_device):
    check(N, 160, 40, torch.float16, triton_device, deterministic=True, norm=True, swiglu=True)


def test_tiles_of_a_row_count_that_is_no_power_of_two(triton_device):
    """As the 2560 outputs of the real model are cut: 20 rows in a tile padded to 32, on 8 warps."""
    with tuned.trial("linear", linear_tile.shape_key(16, 50, 320, False), Tile(20, 8, 3).entry()):
        check(9, 320, 50, torch.float16, triton_device, norm=True, residual=True)
    with tuned.trial("linear", linear_tile.shape_key(1, 50, 320, True), Tile(8, 1, 3).entry()):
        check(1, 320, 50, torch.float16, triton_device, norm=True, swiglu=True)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", [{"residual": True}, {"norm": True, "swiglu": True}], ids="+".join)
def test_deterministic_rows_do_not_see_each_other(dtype, parts, triton_device):
    """A row alone gives bit for bit what it gives among 15 or 32 others, in any place, whatever they hold."""
    alone_among_others(operands(33, 160, 40, dtype, triton_device, **parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arranged", [False, True])
def test_deterministic_rows_do_not_see_each_other_on_the_cpu(dtype, arranged):
    x, weight, named = operands(33, 160, 40, dtype, torch.device("cpu"), norm=True, swiglu=True)
    alone_among_others((x, arrange(weight.contiguous()) if arranged else weight, named))


def alone_among_others(case):
    x, weight, named = case
    residual = named.pop("residual", None)

    def run(rows):
        own = {} if residual is None else {"residual": residual[rows]}
        return linear(x[rows], weight, **named, **own, deterministic=True)

    everyone = run(list(range(33)))
    x[1] = torch.inf
    some = run([5, 1, 32, *range(6, 19)])
    for n, among_16 in ((5, some[0]), (32, some[2]), (18, some[-1])):
        assert torch.equal(everyone[n], among_16)
        assert torch.equal(everyone[n], run([n])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("N", [1, 5])
def test_the_cpu_computes_the_same_with_arranged_weights(N, parts, dtype):
    x, weight, named = operands(N, 96, 40, dtype, torch.device("cpu"), **parts)
    want = one_by_one(x, weight, **named)
    got = linear(x, arrange(weight.contiguous()), **named)
    tolerance = 1e-5 if dtype == torch.float32 else 1.6e-2 * want.abs().max().item()
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
    assert got is named["residual"] if "residual" in named else True


SHAPES = {(2560, 4096): {}, (2560, 9728): {}, (6144, 2560): {"norm": True},
          (9728, 2560): {"norm": True, "swiglu": True}, (8208, 2560): {"norm": True}}  # fmt: skip


@pytest.mark.parametrize("OUT, IN", SHAPES)
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_estimated_tiles_keep_the_memory_of_an_h200_busy(depth, OUT, IN):
    """33 KB of W on their way for each multiprocessor while the oldest step is computed: 4.3 TB/s for 1 us."""
    parts = {"swiglu": False, "norm": False} | SHAPES[OUT, IN]
    device = torch.device("cpu")
    for tile in linear_tile.candidates(depth, OUT, **parts, device=device):
        programs = -(-OUT // tile.rows)
        step = tile.rows * (1 + parts["swiglu"]) * linear_tile.columns(depth, tile.warps, 2) * 2
        buffer = linear_tile.step_bytes(depth, tile.rows, tile.warps, **parts, itemsize=2)
        at_once = min(-(-programs // 132), 227 * 1024 // ((tile.stages - 1) * buffer + 1024), 32, 64 // tile.warps)
        assert at_once >= 1, tile
        if tile == linear_tile.estimate(depth, OUT, **parts, itemsize=2, device=device):
            assert min(programs, at_once * 132) / 132 * step * (tile.stages - 2) > 33e3


def test_tuned_tiles_come_from_the_file_of_this_gpu(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"linear": {linear_tile.shape_key(8, 2560, 4096, False): Tile(16, 4, 5).entry()}}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary 1000")
    monkeypatch.setattr(tuned, "file_of", {"NVIDIA Imaginary 1000": file}.get)
    monkeypatch.setattr(linear_tile, "estimate", lambda *_: None)
    tuned._table.cache_clear()
    gpu, rest = torch.device("cuda", 0), (4096, False, False)
    assert linear_tile.tile_of(8, 2560, *rest, torch.bfloat16, gpu) == Tile(16, 4, 5)
    for depth, OUT, dtype, device in (
        (16, 2560, torch.bfloat16, gpu),  # these have no line there
        (8, 2561, torch.bfloat16, gpu),
        (8, 2560, torch.float32, gpu),
        (8, 2560, torch.bfloat16, torch.device("cpu")),
    ):
        assert linear_tile.tile_of(depth, OUT, *rest, dtype, device) is None
    tuned._table.cache_clear()


def test_every_checked_in_table_is_readable():
    assert tuned.file_of("NVIDIA H200").name == "nvidia_h200.json"
    for file in tuned.file_of("any").parent.glob("*.json"):
        for shape, tile in json.loads(file.read_text()).get("linear", {}).items():
            assert shape.split()[0] in ("1", "8", "16") and Tile(**tile)
