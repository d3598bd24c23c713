"""The searches against their definitions, and against AutoAWQ's where it is installed."""

from __future__ import annotations

import pytest
import torch

from octavo.quant import awq_search
from octavo.quant.awq_search import EXPONENTS, Inputs, clamp, search_scales
from octavo.quant.formats import awq


def rows(T: int, K: int, seed: int = 0) -> torch.Tensor:
    """Channels of very different strength, and correlated."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(T, K, generator=random) @ torch.randn(K, K, generator=random) / K**0.5
    return mixed * torch.randn(K, generator=random).exp()


def weight(N: int, K: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("T", [40, 64, 65, 300], ids=lambda T: f"T={T}")
def test_losses_and_grams_are_what_they_are_defined_to_be(T, device):
    x, D = rows(T, 64).to(device), weight(24, 64).to(device)
    c = torch.linspace(0.1, 2, T, device=device)
    inputs = Inputs(x, c)
    want = (c * (x @ D.t()).square().sum(1)).sum() / c.sum()
    torch.testing.assert_close(inputs.loss(D), want, rtol=1e-4, atol=0)
    torch.testing.assert_close(inputs.magnitude, (c[:, None] * x.abs()).sum(0) / c.sum(), rtol=1e-4, atol=1e-6)
    H = (x * c[:, None]).t() @ x / c.sum()
    for g, block in enumerate(inputs.grams(16)):
        torch.testing.assert_close(block, H[16 * g : 16 * g + 16, 16 * g : 16 * g + 16], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("T", [100, 1100], ids=["rows", "H"])
def test_bf16_rows_give_nearly_the_same_loss(T):
    x, D = rows(T, 256).bfloat16(), weight(24, 256)
    exact, fast = Inputs(x.float(), torch.ones(T)), Inputs(x, torch.ones(T))
    torch.testing.assert_close(fast.loss(D), exact.loss(D), rtol=5e-3, atol=0)
    torch.testing.assert_close(fast.grams(64), exact.grams(64), rtol=0, atol=1e-2 * exact.grams(64).abs().max().item())


def naive_search(W: torch.Tensor, x: torch.Tensor, group: int, share=lambda v: v) -> tuple[torch.Tensor, float | None]:
    """AWQ's search as it is published, and plain rounding among its candidates; `share` averages channels."""
    N, K = W.shape
    largest = W.abs().view(N, -1, group).amax(-1, keepdim=True) + 1e-6
    w_mean = share((W.abs().view(N, -1, group) / largest).view(N, K).mean(0))
    x_mean = share(x.abs().mean(0))
    best, found = torch.inf, None
    for step in range(-1, EXPONENTS):
        a = step / EXPONENTS
        s = torch.ones(K) if step < 0 else (x_mean**a / (w_mean ** (1 - a) + 1e-4)).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        rounded = awq.quantize(W * s, group).dequantize() / s
        loss = (x @ (rounded - W).t()).square().mean().item()
        if loss < best:
            best, found = loss, (s, None if step < 0 else a)
    return found


def test_scales_equal_the_published_search():
    x, W = rows(50, 256), weight(96, 256)
    want, exponent = naive_search(W, x, 64)
    got = search_scales([W[:32], W[32:]], Inputs(x, torch.ones(50)), 64)
    assert got.exponent == exponent
    torch.testing.assert_close(got.channels, want)
    assert got.scaled < 0.8 * got.rounded  # strong channels are worth it


def test_query_heads_of_a_value_head_share_its_scales():
    """Two value heads of 32 channels, three query heads to each."""
    x, W = rows(50, 192), weight(96, 192)

    def share(values: torch.Tensor) -> torch.Tensor:
        return values.view(2, 3, 32).mean(1, keepdim=True).expand(2, 3, 32).reshape(192)

    want, exponent = naive_search(W, x, 32, share)
    got = search_scales([W], Inputs(x, torch.ones(50)), 32, repeats=3, width=32)
    assert got.exponent == exponent is not None
    torch.testing.assert_close(got.channels, want)


def test_plain_rounding_stays_where_no_scale_is_better():
    """Every value is one of its group's sixteen."""
    W = awq.quantize(weight(16, 64), 32).dequantize()
    got = search_scales([W], Inputs(rows(50, 64), torch.ones(50)), 32)
    assert got.exponent is None
    assert torch.equal(got.channels, torch.ones(64))
    assert got.scaled == got.rounded < 1e-9


def test_a_channel_that_is_never_driven_does_no_harm():
    x, W = rows(50, 64), weight(16, 64)
    x[:, 5], W[:, 9] = 0, 0
    got = search_scales([W], Inputs(x, torch.ones(50)), 32)
    assert got.channels.isfinite().all() and (got.channels > 0).all()


def naive_clamp(W: torch.Tensor, x: torch.Tensor, group: int) -> torch.Tensor:
    W = W.clone()
    for n in range(len(W)):
        for first in range(0, W.shape[1], group):
            at = slice(first, first + group)
            w, best, found = W[n, at], torch.inf, None
            for step in range(10):
                limit = w.abs().max() * (1 - step / 20)
                rounded = awq.quantize(w.clamp(-limit, limit)[None], group).dequantize()[0]
                loss = (x[:, at] @ (rounded - w)).square().mean().item()
                if loss < best:
                    best, found = loss, limit
            W[n, at] = w.clamp(-found, found)
    return W


def test_clamping_equals_its_definition():
    x, W = rows(50, 96), weight(8, 96)
    want, got = naive_clamp(W, x, 32), clamp(W, Inputs(x, torch.ones(50)).grams(32))
    torch.testing.assert_close(got, want)
    assert 0.2 < (got.view(8, 3, 32) != W.view(8, 3, 32)).any(-1).float().mean() <= 1


def unrounded_steps(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AutoAWQ searches with steps in the dtype of the weights."""
    scale = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    return scale, (-groups.amin(-1, keepdim=True) / scale).round().clamp(0, 15)


@pytest.fixture
def autoawq(monkeypatch):
    """AutoAWQ's quantizer without a model. Its backup of weights is a copy on GPUs alone: here it is made one."""
    quantizer = pytest.importorskip("awq.quantize.quantizer").AwqQuantizer
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    monkeypatch.setattr(awq_search, "steps", unrounded_steps)
    own = quantizer.__new__(quantizer)
    own.group_size, own.w_bit, own.zero_point, own.duo_scaling = 64, 4, True, True
    own.max_chunk_memory, own.n_parallel_calib_samples = 1 << 30, None
    return own


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autoawq_finds_the_same_scales(autoawq):
    x, W = rows(50, 256), weight(128, 256)
    linear = torch.nn.Linear(256, 128, bias=False)
    linear.weight.data = W.clone()
    linear.weight.requires_grad_(False)
    block = torch.nn.Sequential(torch.nn.LayerNorm(256), linear)
    _, _, theirs = autoawq._search_best_scale(block, block[0], [linear], x)
    torch.testing.assert_close(search_scales([W], Inputs(x, torch.ones(50)), 64).channels, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autoawq_clamps_to_the_same_bounds(autoawq):
    x, W = rows(50, 256), weight(128, 256)
    bounds = autoawq._compute_best_clip(W, x)
    theirs = W.view(128, 4, 64).clamp(-bounds, bounds)
    ours = clamp(W, Inputs(x, torch.ones(50)).grams(64)).view(128, 4, 64)
    assert (ours == theirs).all(-1).float().mean() > 0.99  # the order of the sums may tip a near tie
