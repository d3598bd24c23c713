"""Products with fp8 weights against the same weights dense, and the rounding of x's rows to fp8."""

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels import fp8
from octavo.kernels.byte_dense import byte_dense_ref
from octavo.kernels.fp8 import Fp8
from octavo.kernels.fp8_rows import LARGEST, fp8_rows, fp8_rows_ref

from .dense_product import PARTS, check

E4M3 = torch.float8_e4m3fn


def matrix(OUT, IN, seed=0):
    """All 254 numbers of e4m3 are among the codes."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (OUT, IN), generator=random).to(torch.uint8)
    codes[codes & 127 == 127] = 0  # no number
    return codes.view(E4M3), 1e-3 * torch.exp(torch.randn(OUT, 1, generator=random))


def exactly(codes, scale):
    return codes.float().double() * scale.double()


def test_every_code_becomes_its_number(triton_device):
    codes = torch.arange(256, dtype=torch.uint8)
    codes[codes & 127 == 127] = 0
    codes = codes.view(E4M3).view(2, 128)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        packed = Fp8.pack(codes, torch.ones(2, 1), triton_device)
        assert torch.equal(packed.dense(dtype).cpu(), codes.to(dtype))
        assert torch.equal(byte_dense_ref(packed.weight, dtype).cpu(), codes.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", PARTS[::2], ids="+".join)
@pytest.mark.parametrize("N, IN, OUT", [(1, 600, 13), (2, 123, 24), (16, 300, 21)])
def test_few_rows(N, IN, OUT, parts, dtype, triton_device):
    case = matrix(OUT * (1 + parts.get("swiglu", False)), IN)
    packed = Fp8.pack(*case, triton_device)
    assert packed.shape == case[0].shape and packed.nbytes <= case[0].numel() + case[0].shape[0] * (4 + 15)
    check(packed, exactly(*case), N, dtype, triton_device, **parts)


@pytest.mark.parametrize("deterministic", [False, True])
def test_many_rows_in_16_bits(deterministic, triton_device, monkeypatch):
    """As a GPU without fp8 matrix units computes them, and as every GPU does when asked for the same bits."""
    monkeypatch.setattr(fp8, "has_fp8_products", lambda device: False)
    case = matrix(48, 160)
    packed = Fp8.pack(*case, triton_device)
    check(packed, exactly(*case), 20, torch.float16, triton_device, deterministic, norm=True, residual=True)


@pytest.mark.gpu
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("N", [17, 64, 300])
def test_many_rows_in_fp8(N, parts, triton_device):
    """Rounding x to e4m3 costs up to 2^-4 of each number, 2.6 % of a row: what differs is as random as that."""
    if not (triton_device.type == "cuda" and fp8.has_fp8_products(triton_device)):
        pytest.skip("no fp8 matrix units")
    case = matrix(256 * (1 + parts.get("swiglu", False)), 608)
    packed = Fp8.pack(*case, triton_device)
    check(packed, exactly(*case), N, torch.bfloat16, triton_device, slack=30, **parts)


def test_many_rows_go_through_the_fp8_product(triton_device, monkeypatch):
    """What the product is given, and what follows it, with a product of our own in its place."""
    given = []

    def scaled_mm(a, b, *, scale_a, scale_b, out_dtype, use_fast_accum):
        given.append((a, b))
        assert (a.dtype, b.dtype) == (E4M3, E4M3) and a.is_contiguous() and b.t().is_contiguous()
        assert scale_a.shape == (a.shape[0], 1) and scale_b.shape == (1, b.shape[1])
        assert a.shape[1] % 16 == 0 and b.shape[1] % 16 == 0  # what the real one asks for
        return ((a.float() @ b.float()) * scale_a * scale_b).to(out_dtype)

    monkeypatch.setattr(fp8, "has_fp8_products", lambda device: True)
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    case = matrix(32, 72)
    packed = Fp8.pack(*case, triton_device)
    check(packed, exactly(*case), 18, torch.bfloat16, triton_device, slack=15, norm=True, swiglu=True)
    assert len(given) == 1
    packed.linear(torch.randn(16, 72, dtype=torch.bfloat16, device=triton_device))
    packed.linear(torch.randn(18, 72, dtype=torch.bfloat16, device=triton_device), deterministic=True)
    packed.linear(torch.randn(18, 72, device=triton_device))  # fp32 is for checking
    odd = Fp8.pack(*matrix(40, 72), triton_device)  # 40 is not 16 times something
    odd.linear(torch.randn(18, 72, dtype=torch.float16, device=triton_device))
    assert len(given) == 1


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("N, IN, columns", [(3, 123, 128), (5, 600, 608)])
def test_rows_to_fp8(N, IN, columns, with_norm, triton_device):
    x = torch.randn(N, IN + 8, dtype=torch.float16).to(triton_device)[:, :IN]
    x[0] *= 1e-3
    x[1, 5] = 300.0
    norm = torch.randn(IN, device=triton_device) if with_norm else None
    q, scale = fp8_rows(x, columns, norm, 1e-6)
    want, want_scale = fp8_rows_ref(x, columns, norm, 1e-6)
    torch.testing.assert_close(scale, want_scale, rtol=1e-5, atol=0)
    got, want = q.float(), want.float()
    assert got.shape == (N, columns) and got[:, IN:].abs().max() == 0
    # A number between two neighbours may go either way when the scale differs in its last bit.
    assert (got != want).float().mean() < 0.01 and ((got - want).abs() <= 0.13 * want.abs() + 2**-9).all()
    assert want.abs().amax(1).eq(LARGEST).all()


def test_rounding_to_fp8(triton_device):
    """Every number of e4m3, what lies halfway between neighbours, and just beside that."""
    codes = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    half = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([codes, half, half * (1 + 2**-9), half * (1 - 2**-9)])
    x = torch.stack([x, -x]).to(triton_device)
    q, scale = fp8_rows(x, x.shape[1])
    assert torch.equal(q.view(torch.uint8), (x / scale).to(E4M3).view(torch.uint8)) and scale.eq(1).all()


def test_a_row_of_zeros(triton_device):
    q, scale = fp8_rows(torch.zeros(2, 32, dtype=torch.bfloat16, device=triton_device), 32)
    assert q.float().eq(0).all() and scale.isfinite().all()


def test_a_cpu_computes_the_reference():
    case = matrix(40, 96)
    packed = Fp8.pack(*case, torch.device("cpu"))
    check(packed, exactly(*case), 20, torch.float32, torch.device("cpu"), norm=True, residual=True)
    assert F.mse_loss(packed.dense(torch.float32), exactly(*case).float()) < 1e-12
