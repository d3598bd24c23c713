"""The CPU's linear layer against the product in fp64, with and without oneDNN's ops."""

import sys

import pytest
import torch

from octavo.kernels import cpu_linear as module
from octavo.kernels import huge_pages
from octavo.kernels.huge_pages import PAGE, use_huge_pages

TOL = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}  # fp32: the order of the sum; bf16: two ulp


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 71])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("cached", [0, 2 << 20])
def test_cpu_linear(dtype, rows, onednn, cached, monkeypatch):
    if not onednn:
        monkeypatch.setattr(module, "_onednn", lambda dtype: False)
    monkeypatch.setattr(module, "CACHED", cached)
    weight = (torch.randn(123, 60) / 60**0.5).to(dtype)
    x = torch.randn(rows, 2 * 60).to(dtype)[:, ::2]  # strided
    got = module.cpu_linear(x, module.arrange(weight.clone()))
    assert got.dtype == dtype and got.shape == (rows, 123)
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, atol=TOL[dtype], rtol=TOL[dtype])


def test_no_second_layout_is_kept():
    """What `arrange` returns holds the values once, in as many bytes."""
    weight = torch.randn(64, 32)
    arranged = module.arrange(weight)
    assert arranged.shape == weight.shape and arranged.nbytes == weight.nbytes and torch.equal(arranged, weight)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_huge_pages_change_no_value_and_touch_no_neighbour():
    memory = torch.arange(3 * PAGE // 4, dtype=torch.int32)  # three pages' worth, at any address
    inside = memory[1000:-1000]
    use_huge_pages(inside.data_ptr(), inside.nbytes)
    assert torch.equal(memory, torch.arange(len(memory), dtype=torch.int32))


def test_only_whole_pages_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *arguments: asked.append(arguments) or 0)
    use_huge_pages(5 * PAGE + 64, 3 * PAGE)
    use_huge_pages(5 * PAGE + 64, PAGE)  # has none
    assert [(first // PAGE, size // PAGE) for first, size, _ in asked] == [(6, 2), (6, 2)]
