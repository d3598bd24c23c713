"""Each benchmark once, at the smallest size: it runs, its checks are green, and a slip turns them red."""

from __future__ import annotations

import pytest
import torch

from octavo.bench import command
from octavo.bench.baseline import Baseline, mark, rewind
from octavo.bench.first_chunk import first_chunk_results
from octavo.bench.loading import loading_results
from octavo.bench.measure import CheckFailed
from octavo.bench.prefill import prefill_results
from octavo.bench.request import Probe
from octavo.bench.step import Course, step_results


def test_step(tiny_dir, device):
    results = step_results(tiny_dir, "tiny", device, 2)
    endings = ("", ", greedy", ", sampled")
    assert [result.case for result in results] == [f"tiny, {d}{end}" for d in ("fp32", "bf16") for end in endings]
    assert [result.goal for result in results] == ["C1", "", "", "C1", "", ""]
    for result in results:
        assert result.checks and result.timings.keys() == {"octavo", "baseline"} and result.value > 0
    assert len(results[1].checks) == 2  # in fp32 the greedy codes are compared as well
    assert command.text(results).count("\n") == 5


def test_the_timed_step_is_the_one_behind_160_rows(tiny_dir, device, monkeypatch):
    """What both sides run in the timed call: one row, at position 160, again and again."""
    seen = {"octavo": set(), "baseline": set()}
    decode_row, forward = Probe.decode_row, Baseline.forward

    def ours(self, sequences):
        if self.body_only:
            seen["octavo"].add(self.slots.length[sequences[0].slot].item())
        return decode_row(self, sequences)

    def theirs(self, embedded, cache):
        if len(embedded) == 1:
            seen["baseline"].add(cache.get_seq_length())
        return forward(self, embedded, cache)

    monkeypatch.setattr(Probe, "decode_row", ours)
    monkeypatch.setattr(Baseline, "forward", theirs)
    step_results(tiny_dir, "tiny", device, 3)
    assert seen["octavo"] == {160} and seen["baseline"] == set(range(144, 161))  # 144..159: the forced rows


def test_both_sides_run_the_same_step(tiny_dir, device):
    """Rewinding gives the same hidden states again, on either side."""
    course, baseline = Course.random(device), Baseline(tiny_dir, device, torch.float32)
    _, cache = course.through(baseline)
    held = mark(cache)
    first = baseline.forward(baseline.embed_rows(course.row[None]), cache)
    rewind(cache, held)
    assert cache.get_seq_length() == 160
    torch.testing.assert_close(baseline.forward(baseline.embed_rows(course.row[None]), cache), first, atol=0, rtol=0)


def test_prefill(tiny_dir, device):
    results = prefill_results(tiny_dir, "tiny", device, 1)
    assert [result.goal for result in results] == ["C4", "", "C4", ""]
    assert all(result.checks and result.value > 0 for result in results)
    reused = [int(result.case.split(", ")[2].split()[0]) for result in results]
    assert reused[1] == reused[3] == 0 and 64 <= reused[0] == reused[2] <= 91


@pytest.mark.parametrize("measured", [step_results, prefill_results])
@pytest.mark.parametrize("slip", ["gate and up", "rope"])
def test_a_slip_turns_the_checks_red(tiny_dir, device, monkeypatch, measured, slip):
    """Weights or positions of the baseline wrong: no result comes out."""
    made = Baseline.__init__

    def wrong(self, *arguments):
        made(self, *arguments)
        if slip == "rope":
            self.model.rotary_emb.inv_freq *= 1.01
        else:
            mlp = self.model.layers[1].mlp
            mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj

    monkeypatch.setattr(Baseline, "__init__", wrong)
    monkeypatch.setattr("octavo.bench.step.compare", lambda *_, **__: pytest.fail("something was timed"))
    monkeypatch.setattr("octavo.bench.prefill.compare", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(CheckFailed, match="hidden states"):
        measured(tiny_dir, "tiny", device, 1)


def test_first_chunk(tiny_dir):
    (result,) = first_chunk_results(tiny_dir)
    assert result.value == 18 and result.met and result.checks


def test_loading(tiny_dir):
    peak, seconds = loading_results(tiny_dir, 1, dtypes=("fp32",))
    # The tiny weights are 20 MB, so that buffers of fixed size weigh more than the tenth that is asked for.
    assert 0.9 < peak.value < 3 and peak.asked == 1.1 and peak.at_most
    assert 0 < seconds.value < 60 and seconds.checks
