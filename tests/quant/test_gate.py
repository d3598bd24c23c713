"""The gate lets good copies through and sees planted faults, on a synthetic model that ends its speech by itself."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from octavo.quant import gate, rows, texts
from octavo.quant.scores import FreeRuns, Scores
from octavo.quant.walk import Walk
from octavo.runtime.checkpoint import Checkpoint

from .outliers import rewritten
from .speakers import CONSTANT, hasty, rounded, speaker_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return speaker_checkpoint(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def utterances(speaker):
    with rows.speaker(speaker, "cpu") as engine:
        return rows.draw(engine, texts.GATE[:8], max_rows=64)


@pytest.fixture(scope="module")
def judge(speaker, utterances):
    def score(folder, free: bool = False) -> Scores:
        runs = gate.free_runs(folder, utterances, device="cpu") if free else None
        return gate.score(Checkpoint.open(speaker), Checkpoint.open(folder), utterances, runs)

    return score


@pytest.fixture(scope="module")
def good(judge, speaker, tmp_path_factory) -> Scores:
    return judge(rounded(speaker, tmp_path_factory.mktemp("good") / "8", bits=8))


def test_the_same_again_is_the_same(judge, speaker):
    scores = judge(speaker, free=True)
    # The same product may differ in its last bit where its operands lie elsewhere in memory.
    assert max(*scores.kl_mean, *scores.kl_p99, *scores.hidden, abs(scores.eoc_shift), abs(scores.eoc_log_odds)) < 1e-5
    assert {*scores.top1} == {1.0} and min(scores.top50) > 0.999 and scores.waveform == 0
    free = scores.free
    assert (free.run_ons, free.early, free.early_source, free.length_ratio) == (free.run_ons_source, 0, 0, 1)
    assert gate.verdict(scores, 8) == []


def test_rounding_is_graded_by_its_bits(judge, good, speaker, tmp_path):
    four, three = (judge(rounded(speaker, tmp_path / str(bits), bits)) for bits in (4, 3))
    assert max(good.kl_mean) < max(four.kl_mean) / 20 < max(three.kl_mean) / 60
    assert list(good.hidden) == sorted(good.hidden) and good.hidden[-1] < four.hidden[-1] / 5
    assert good.waveform < four.waveform < three.waveform
    assert gate.verdict(good, 8) == [] == gate.verdict(four, 4)
    assert any("mean KL" in sentence for sentence in gate.verdict(four, 8))
    assert any("mean KL" in sentence for sentence in gate.verdict(three, 4))


def test_a_damaged_layer_is_seen_and_named(judge, speaker, tmp_path):
    scores = judge(rounded(speaker, tmp_path / "damaged", 2, lambda name: ".layers.2." in name))
    assert scores.hidden[:2] == (0, 0) and scores.hidden[2] > 0.1
    wrong = gate.verdict(scores, 4)
    assert "codebook 0" in wrong[0] and any(sentence.startswith("Layer 2 ") for sentence in wrong)


@pytest.mark.parametrize("raised", [0.9, -0.9])
def test_a_head_that_ends_too_soon_or_too_late_is_seen(judge, speaker, utterances, tmp_path, raised):
    walk = Walk(Checkpoint.open(speaker), utterances, CPU, torch.float32)
    for _ in walk.layers():
        pass
    x = walk.x * walk.x.square().mean(-1, keepdim=True).rsqrt() * walk.checkpoint["body.norm.weight"].float()
    scores = judge(hasty(speaker, tmp_path / "hasty", raised, x[walk.weights == 1, CONSTANT].mean().item()))
    assert scores.eoc_log_odds == pytest.approx(raised, rel=0.15)
    wrong = gate.verdict(scores, 4)
    assert wrong and all("end of speech" in sentence for sentence in wrong)


def test_a_copy_that_gives_no_numbers_fails(judge, speaker, tmp_path):
    name = "body.layers.1.self_attn.o_proj.weight"
    broken = Checkpoint.open(speaker)[name] * math.nan
    wrong = gate.verdict(judge(rewritten(speaker, tmp_path / "broken", {name: broken})), 4)
    assert "nan" in wrong[0] and any(sentence.startswith("Layer 1 ") for sentence in wrong)


def test_every_device_gives_the_same_scores(speaker, utterances, tmp_path, device):
    source, copy = Checkpoint.open(speaker), Checkpoint.open(rounded(speaker, tmp_path / "copy", 5))
    want, got = (gate.score(source, copy, utterances[:2], device=where) for where in ("cpu", device))
    assert got.kl_mean == pytest.approx(want.kl_mean, rel=0.02) and got.hidden == pytest.approx(want.hidden, rel=0.02)
    assert got.eoc_log_odds == pytest.approx(want.eoc_log_odds, abs=0.01)


def test_progress_counts_layers(speaker, utterances):
    seen = []
    source = Checkpoint.open(speaker)
    gate.score(source, source, utterances[:1], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_only_speech_that_both_end_can_end_early(utterances):
    one = utterances[0]
    short, long = (dataclasses.replace(one, codes=one.codes[:1].repeat(n, 0), finish_reason="stop") for n in (10, 40))
    cut = dataclasses.replace(long, finish_reason="length", silence=2.0)
    free = gate.compare_runs([long, short, cut, long, long], [short, long, short, cut, long])
    assert free == FreeRuns(5, 1, 1, 1, 1, 1.0, 0.4 + long.silence * 0.8, 0.4 + long.silence * 0.8)


def runs(count: int, run_ons: int = 0, source: int = 0, early: int = 0, early_source: int = 0) -> FreeRuns:
    return FreeRuns(count, source, run_ons, early_source, early, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "free, passes",
    [
        (runs(24, run_ons=1), True),  # one may go astray by chance
        (runs(24, run_ons=2), False),
        (runs(400, run_ons=2), True),  # 1 in 200
        (runs(400, run_ons=3), False),
        (runs(24, run_ons=9, source=5), True),  # a source that runs on itself does so at random
        (runs(24, run_ons=16, source=5), False),
        (runs(24, run_ons=20, source=24), True),
        (runs(24, early=1), True),
        (runs(24, early=5), False),
        (runs(24, early=5, early_source=5), True),
    ],
)
def test_run_ons_and_early_stops_are_counted(good, free, passes):
    wrong = gate.verdict(dataclasses.replace(good, free=free), 8)
    assert (wrong == []) == passes and all("utterances" in sentence for sentence in wrong)


@pytest.mark.parametrize(
    "change, bits, passes",
    [
        ({"kl_mean": (0.0,) * 7 + (0.003,)}, 8, False),
        ({"kl_mean": (0.0,) * 7 + (0.003,)}, 6, True),
        ({"kl_mean": (0.011,) + (0.0,) * 7}, 5, False),
        ({"kl_mean": (0.011,) + (0.0,) * 7}, 4.5, True),
        ({"top1": (1.0,) * 7 + (0.97,)}, 8, False),
        ({"top1": (1.0,) * 7 + (0.5,)}, 6, True),
        ({"top1": (0.89,) + (1.0,) * 7}, 4, False),
        ({"top1": (0.91,) + (0.8,) * 7}, 4, True),
        ({"eoc_shift": 0.021}, 4, False),
        ({"eoc_shift_last": -0.021}, 4, False),
        ({"eoc_shift_last": None}, 8, True),
        ({"eoc_log_odds": math.nan}, 4, False),
    ],
)
def test_limits(good, change, bits, passes):
    scores = dataclasses.replace(good, free=None, **change)
    assert (gate.verdict(scores, bits) == []) == passes
