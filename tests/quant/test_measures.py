"""Measures of two models' logits against sums written out, on logits that no model made."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from octavo.quant.measures import choices, divergence, relative, stopping
from octavo.runtime.delay import EOC, delay

FRAMES = (30, 9, 12)
BY_LIMIT = 1  # the second speech was cut, so that it has no ramp-out


@pytest.fixture(scope="module")
def spoken():
    """targets [M, 8] and owner [M] of three speeches."""
    torch.manual_seed(0)
    rows = [torch.from_numpy(delay(torch.randint(0, 1024, (frames, 8)).numpy())) for frames in FRAMES]
    rows[BY_LIMIT] = rows[BY_LIMIT][: FRAMES[BY_LIMIT]]
    return torch.cat(rows), torch.arange(3).repeat_interleave(torch.tensor([len(r) for r in rows]))


def test_what_the_delay_pattern_decides_is_no_choice(spoken):
    chosen = choices(*spoken)
    first = 0
    for number, frames in enumerate(FRAMES):
        stopped = number != BY_LIMIT
        rows = frames + 7 * stopped
        want = [[r - c in range(frames) or (stopped and c == 0 and r == frames) for c in range(8)] for r in range(rows)]
        assert chosen.codes[first : first + rows].tolist() == want
        speaking = [r in range(8, frames + stopped) for r in range(rows)]
        assert chosen.speaking[first : first + rows].tolist() == speaking
        assert ((chosen.ends - first) == frames).any() == stopped
        first += rows
    assert len(chosen.ends) == 2


def test_divergence_by_the_book():
    torch.manual_seed(1)
    source = torch.randn(40, 1026) * 3
    quantized = source + torch.randn(40, 1026) * 0.2
    got = divergence(source, quantized, 5)
    a, b = (x[:, :1024].double().log_softmax(-1) for x in (source, quantized))
    kl = F.kl_div(b, a, reduction="none", log_target=True).sum(-1)
    assert got.kl_mean == pytest.approx(kl.mean().item(), rel=1e-4)
    assert got.kl_p99 == pytest.approx(kl.quantile(0.99).item(), rel=1e-4)
    tops = [set(x.topk(50).indices.tolist()) for x in source[:, :1024]]
    others = [set(x.topk(50).indices.tolist()) for x in quantized[:, :1024]]
    assert got.top50 == pytest.approx(sum(len(x & y) for x, y in zip(tops, others, strict=True)) / 2000)
    assert got.top1 == pytest.approx((a.argmax(-1) == b.argmax(-1)).float().mean().item(), abs=0.05)


def test_only_codebook_0_may_end_and_nobody_begins():
    source = torch.randn(10, 1026)
    for token, seen in ((1024, ()), (1025, (0,))):
        quantized = source.clone()
        quantized[:, token] += 5
        for codebook in (0, 1, 7):
            got = divergence(source, quantized, codebook)
            assert (got.kl_mean > 0.01) == (codebook in seen), (token, codebook)


def test_codes_that_bf16_cannot_tell_apart_are_equally_likely():
    source = torch.zeros(3, 1026)
    source[:, 5], source[0, 6], source[1, 6], source[2, 6] = 20.0, 19.99, 19.7, 20.0
    quantized = source.clone()
    quantized[:, 6] = 21
    assert divergence(source, quantized, 3).top1 == pytest.approx(2 / 3)


def test_a_raised_end_is_seen_in_log_odds_and_in_probability(spoken):
    torch.manual_seed(2)
    source = torch.randn(len(spoken[0]), 1026)
    chosen = choices(*spoken)
    rows = chosen.speaking.nonzero()[:, 0]
    for raised in (0.9, -0.9):
        quantized = source.clone()
        quantized[:, EOC] += raised
        got = stopping(source, quantized, chosen)
        p, q = (torch.cat([x[:, :1024], x[:, EOC:]], 1).softmax(-1)[:, -1] for x in (source, quantized))
        assert got.eoc_log_odds == pytest.approx(raised, abs=1e-3)
        assert got.eoc_shift == pytest.approx((q - p)[rows].mean().item(), rel=1e-3)
        ends, owner = chosen.ends.tolist(), spoken[1].tolist()
        before = [[e - back for e in ends if owner[e - back] == owner[e] and e - back in rows] for back in range(21)]
        assert got.eoc_shift_last == pytest.approx((q - p)[sum(before[1:11], [])].mean().item(), rel=1e-3)
        assert len(before[13]) == 1  # twenty rows before its end the other was not there yet
        want = [(p[at].mean().item(), q[at].mean().item()) for at in reversed(before)]
        assert [*map(list, got.ending)] == [pytest.approx(list(pair), rel=1e-3) for pair in want]


def test_noise_is_no_shift_of_the_end(spoken):
    torch.manual_seed(3)
    targets, owner = (x.repeat(60, *[1] * (x.dim() - 1)) for x in spoken)
    owner = owner + torch.arange(60).repeat_interleave(len(spoken[0])) * 3
    source, quantized = (torch.randn(len(targets), 1026) for _ in range(2))
    assert abs(stopping(source, quantized, choices(targets, owner)).eoc_log_odds) < 0.2


def test_without_an_end_there_is_nothing_before_it(spoken):
    targets, owner = (x[spoken[1] == BY_LIMIT] for x in spoken)
    logits = torch.randn(len(targets), 1026)
    got = stopping(logits, logits, choices(targets, owner))
    assert got.eoc_shift_last is None and got.ending == () and got.eoc_log_odds == 0


def test_relative_error_counts_every_row_alike():
    source = torch.randn(6, 32)
    quantized = source * 1.01
    source[0] *= 1e4
    quantized[0] = source[0]
    assert relative(source, quantized) == pytest.approx(0.01 * 5 / 6, rel=1e-3)
    assert math.isnan(relative(source, quantized * math.nan))
