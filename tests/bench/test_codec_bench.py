"""The codec's benchmark on narrow widths: it counts right, and it refuses to time what is not equal."""

import pytest
import torch

from octavo.bench import codec as bench
from octavo.bench.codec_reference import NARROW, reference_tokenizer
from octavo.bench.measure import CheckFailed
from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec


@pytest.fixture
def pair():
    reference = reference_tokenizer(NARROW)
    return reference, Codec.load(Weights(reference.state_dict()), "cpu")


def test_results(monkeypatch) -> None:
    monkeypatch.setattr(bench, "DECODES", ((64, 1), (5, 1)))  # two threads on a busy machine wait for each other
    work, *decodes = bench.results(6, torch.device("cpu"), NARROW)
    assert work.goal == "C7" and work.value == pytest.approx(108 / 98) and work.met
    fp32, fp64 = work.checks
    assert fp64.error < 1e-13 and fp32.error < 1e-5
    assert [(r.goal, r.case) for r in decodes] == [("C8", f"{n} frames, fp32, 1 thread") for n in (64, 5)]
    assert all(result.value > 0 and result.timings["octavo"].repetitions == 2 for result in decodes)


def test_two_threads_have_no_goal(pair) -> None:
    reference, codec = pair
    result = bench.decode_speed(codec, reference, 3, 1, threads=2)
    assert (result.goal, result.asked, result.case) == ("", None, "3 frames, fp32, 2 threads")


def test_no_ratio_without_equality(pair, monkeypatch) -> None:
    reference, codec = pair
    with torch.no_grad():
        reference.fc2.bias += 0.01
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(CheckFailed, match="decoded sound"):
        bench.decode_speed(codec, reference, 3, 1, 1)


def test_no_work_without_equality(pair, monkeypatch) -> None:
    """A stream that forgets its first tail."""
    _, codec = pair
    open_stream = codec.stream

    def forgetful(codes):
        stream = open_stream(codes)
        push = stream.push

        def push_and_forget(slots, counts, ends):
            push(slots, counts, ends)
            stream._backend.tails[0].zero_()

        stream.push = push_and_forget
        return stream

    monkeypatch.setattr(codec, "stream", forgetful)
    with pytest.raises(CheckFailed, match="streamed sound"):
        bench.streaming_work([codec])
