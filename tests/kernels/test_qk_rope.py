"""Norm and rope of queries and keys, and the write to the pages, against complex multiplication in fp64."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.qk_rope import qk_rope_write, qk_rope_write_ref
from octavo.kernels.rope import rope_table
from octavo.kernels.rows import Rows

EPS = 1e-6
# fp32: the order of a sum; otherwise one rounding: half an ulp, a whole one in bf16, where the interpreter cuts off
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 8e-3}
# The reference rounds the norm, its product with the weight, and twice in rope: of values up to 4 at the end.
REFERENCE = {torch.float32: 1e-5, torch.bfloat16: 3.2e-2}

SHAPES = pytest.mark.parametrize(
    "H, K, D, S", [(4, 2, 16, 4), (3, 1, 32, 16), (7, 2, 64, 16), (32, 8, 128, 16)], ids=str
)
# The sequence of each row, and its position: lanes that decode, and two prompts
DECODE = [0, 1, 2, 3, 4], [0, 15, 16, 299, 47]
PREFILL = [0] * 2 + [1] * 9, [30, 31, *range(9)]


class Layer:
    """What the op gets, and what it must leave, in fp64."""

    def __init__(self, place, H, K, D, S, dtype, device):
        (owner, positions), self.H = place, H
        N = len(owner)
        T = 300 // S + 1
        table = torch.randperm(5 * (T + 1)).view(5, T + 1).to(device, torch.int32)[:, :-1]  # strided
        rope = rope_table(300, D, 1e6, device, dtype)
        as_int = [torch.tensor(x, dtype=torch.int32, device=device) for x in (positions, owner)]
        self.places = table[owner, [p // S for p in positions]].long(), [p % S for p in positions]
        self.rows = Rows(*as_int, table, rope, S)
        self.pages = torch.full((5 * (T + 1), S, 2, K, D), float("nan"), dtype=dtype, device=device)
        self.qkv = torch.randn(N, H + 2 * K + 1, D).to(device, dtype)[:, :-1]
        self.qkv[0, 1] *= 1e-3  # where the mean is not far above eps, eps counts
        self.weight = torch.randn(H + K, D).to(device, dtype)

        qk, v = self.qkv.double().split((H + K, K), 1)
        qk = qk / (qk.square().mean(-1, keepdim=True) + EPS).sqrt() * self.weight.double()
        cos, sin = (rope[self.rows.positions, i, None, D // 2 :].double() for i in (0, 1))
        turned = torch.complex(*qk.chunk(2, -1)) * torch.complex(cos, sin)
        qk = torch.cat((turned.real, turned.imag), -1)
        self.q, self.kv = qk[:, :H], torch.stack((qk[:, H:], v), 1)

    def check(self, tolerance: float) -> None:
        torch.testing.assert_close(self.qkv[:, : self.H].double(), self.q, atol=tolerance, rtol=tolerance)
        kv = self.pages[self.places]
        torch.testing.assert_close(kv.double(), self.kv, atol=tolerance, rtol=tolerance)
        assert torch.equal(kv[:, 1].double(), self.kv[:, 1])
        self.pages[self.places] = float("nan")
        assert self.pages.isnan().all()


@pytest.mark.parametrize("place", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@SHAPES
def test_qk_rope_write(H, K, D, S, dtype, place, triton_device):
    torch.manual_seed(0)
    layer = Layer(place, H, K, D, S, dtype, triton_device)
    behind = layer.qkv._base[:, -1].clone()
    qk_rope_write(layer.qkv, layer.weight, EPS, layer.rows, layer.pages)
    layer.check(TOLERANCES[dtype])
    assert torch.equal(layer.qkv._base[:, -1], behind)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_row_is_the_same_in_any_company(dtype, triton_device):
    torch.manual_seed(0)
    layer = Layer(DECODE, 4, 2, 32, 16, dtype, triton_device)
    rows, alone, pages = layer.rows, layer.qkv.clone(), layer.pages.clone()
    qk_rope_write(layer.qkv, layer.weight, EPS, rows, layer.pages)
    for n in range(5):
        one = Rows(rows.positions[n, None], rows.owner[n, None], rows.table, rows.rope, rows.page_size)
        qk_rope_write(alone[n, None], layer.weight, EPS, one, pages)
    assert torch.equal(alone[:, :4], layer.qkv[:, :4])
    assert torch.equal(pages[layer.places], layer.pages[layer.places])


def test_idle_lanes_write_to_the_dummy_page_only(triton_device):
    """Idle lanes share row 0 of page 0, whatever comes out of them."""
    torch.manual_seed(0)
    layer = Layer(DECODE, 4, 2, 16, 4, torch.float32, triton_device)
    layer.rows.positions[[1, 3]] = 0
    layer.rows.table[[1, 3]] = 0
    layer.qkv[[1, 3]] = float("nan")
    qk_rope_write(layer.qkv, layer.weight, EPS, layer.rows, layer.pages)
    running = [0, 2, 4]
    torch.testing.assert_close(layer.qkv[running, :4].double(), layer.q[running], atol=1e-5, rtol=1e-5)
    kv = layer.pages[layer.places][running]
    torch.testing.assert_close(kv.double(), layer.kv[running], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("dtype", REFERENCE, ids=str)
@SHAPES
def test_reference(H, K, D, S, dtype, place, device):
    torch.manual_seed(0)
    layer = Layer(place, H, K, D, S, dtype, device)
    qk_rope_write_ref(layer.qkv, layer.weight, EPS, layer.rows, layer.pages)
    layer.check(REFERENCE[dtype])
