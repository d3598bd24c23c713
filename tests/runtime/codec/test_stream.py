"""Streaming: whatever the pushes, each utterance is the one that the whole-utterance decode makes of it."""

from __future__ import annotations

import random

import pytest
import torch

from octavo.runtime.codec import Codec
from octavo.runtime.codec import stream as stream_module
from octavo.runtime.errors import RequestError


def utterance(T: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 1024, (8, T), generator=torch.Generator().manual_seed(seed))


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """RMS of the difference in units of the RMS of `want`."""
    return ((got - want).norm() / want.norm()).item()


class Slot:
    """An utterance being pushed: gives its next frames, dummies after its end; collects its samples."""

    def __init__(self, codes: torch.Tensor, late: bool, rng: random.Random):
        self.codes, self.late, self.rng = codes, late, rng
        self.pos, self.samples = 0, []

    def next(self, m: int) -> tuple[torch.Tensor, int | None]:
        T = self.codes.shape[1]
        frames = torch.tensor([[self.rng.randrange(-1, 1030) for _ in range(m)] for _ in range(8)])
        real = self.codes[:, self.pos : self.pos + m]
        frames[:, : real.shape[1]] = real
        self.pos += m
        return frames, None if self.late and self.pos <= T else T

    def done(self) -> bool:
        return self.pos >= self.codes.shape[1] + 10


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_equals_whole(codec: Codec, codec64: Codec, seed: int, dtype: torch.dtype, tolerance: float) -> None:
    """Random push sizes, starts, activity and ends, known early or late; slots are used again.

    Some are cancelled on the way, which leaves their tails full; their utterance starts anew in whatever slot is free.
    """
    codec, rng = codec if dtype == torch.float32 else codec64, random.Random(seed)
    stream = codec.stream(4)
    waiting = [utterance(rng.choice([1, 2, 5, 9, 10, 11, 12, 37, 60]), seed * 100 + i) for i in range(9)]
    active: dict[int, Slot] = {}
    finished: list[Slot] = []
    while waiting or active:
        if active and rng.random() < 0.1:
            waiting.append(active.pop(rng.choice(list(active))).codes)
        for slot in set(range(4)) - active.keys():
            if waiting and rng.random() < 0.5:
                stream.reset([slot])
                active[slot] = Slot(waiting.pop(), rng.random() < 0.5, rng)
        chosen = [slot for slot in active if rng.random() < 0.7]
        rng.shuffle(chosen)
        m = rng.choice([1, 2, 4, 10, 25])
        pushed = [active[slot].next(m) for slot in chosen]
        if not chosen:
            continue
        out = stream.push(chosen, torch.stack([frames for frames, _ in pushed]), [end for _, end in pushed])
        for slot, samples in zip(chosen, out, strict=True):
            active[slot].samples.append(samples)
            if active[slot].done():
                finished.append(active.pop(slot))
    assert len(finished) == 9
    for slot in finished:
        got, want = torch.cat(slot.samples), codec.decoder(slot.codes[None])[0]
        assert got.shape == want.shape and got.dtype == dtype
        assert distance(got, want) < tolerance, slot.codes.shape


@pytest.mark.parametrize("m", [1, 20, 64])
def test_long_utterance(codec: Codec, m: int) -> None:
    """Beyond 512 frames there is still no seam."""
    codes = utterance(540, 1)
    want = codec.decoder(codes[None])[0]
    padded = torch.cat([codes, codes[:, :74]], dim=1)
    stream = codec.stream(1)
    got = torch.cat([stream.push([0], padded[None, :, i : i + m], [540])[0] for i in range(0, 540 + 10, m)])
    assert got.shape == want.shape and distance(got, want) < 1e-5


def test_samples_come_as_soon_as_they_are_final(codec: Codec) -> None:
    stream, codes = codec.stream(1), utterance(30, 2)[None]
    assert (stream.delay, stream.lookahead) == (9458, 10)
    lengths = [len(stream.push([0], codes[:, :, t : t + 1], [None])[0]) for t in range(14)]
    assert lengths == [0] * 9 + [142, 960, 960, 960, 960]


def test_biases_do_not_leak_in_from_outside_the_utterance(codec64: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last and the first 400 ms are where they would; and without the masks they do."""
    codes = utterance(25, 3)
    want = codec64.decoder(codes[None])[0]

    def streamed() -> torch.Tensor:
        padded = torch.cat([codes, torch.zeros(8, 10, dtype=torch.int64)], dim=1)
        return codec64.stream(1).push([0], padded[None], [25])[0]

    assert (streamed() - want).abs().max() < 1e-12 * want.std()
    plain = stream_module.step
    monkeypatch.setattr(stream_module, "step", lambda *args: plain(*args[:-1], edge=False))
    leaky = (streamed() - want).abs() > 1e-3 * want.std()
    assert leaky[:1000].any() and leaky[-1000:].any() and not leaky[960 * 11 : 960 * 14].any()


def test_unnamed_slots_are_frozen(codec64: Codec) -> None:
    stream = codec64.stream(3)
    stream.push([0, 1, 2], torch.stack([utterance(15, seed) for seed in range(3)]), [None] * 3)
    before = [tail[1].clone() for tail in stream._state.tails]
    stream.push([2, 0], torch.stack([utterance(15, seed) for seed in range(2)]), [None] * 2)
    assert all(torch.equal(tail[1], old) for tail, old in zip(stream._state.tails, before, strict=True))


def test_reset_leaves_nothing_behind(codec64: Codec) -> None:
    stream = codec64.stream(2)
    stream.push([0, 1], torch.stack([utterance(15, seed) for seed in range(2)]), [15, None])
    stream.reset([0])
    fresh = codec64.stream(2)
    codes = utterance(12, 5)[None]
    assert torch.equal(stream.push([0], codes, [None])[0], fresh.push([0], codes, [None])[0])


def test_end_may_not_come_too_late_or_move(codec: Codec) -> None:
    stream = codec.stream(1)
    stream.push([0], utterance(8, 0)[None], [None])
    with pytest.raises(RequestError, match="cannot end at 7"):
        stream.push([0], utterance(1, 0)[None], [7])
    stream.push([0], utterance(1, 0)[None], [8])
    with pytest.raises(RequestError, match="cannot end at 12"):
        stream.push([0], utterance(1, 0)[None], [12])


@pytest.mark.parametrize("slots", [[0, 0], [2], [-1]])
def test_wrong_slots(codec: Codec, slots: list[int]) -> None:
    with pytest.raises(RequestError, match="different numbers below 2"):
        codec.stream(2).push(slots, torch.zeros(len(slots), 8, 1, dtype=torch.int64), [None] * len(slots))


def test_wrong_shape_and_nothing_to_push(codec: Codec) -> None:
    stream = codec.stream(2)
    with pytest.raises(RequestError, match="2 slots were pushed"):
        stream.push([0, 1], torch.zeros(2, 7, 1, dtype=torch.int64), [None, None])
    assert stream.push([], torch.zeros(0, 8, 3, dtype=torch.int64), []) == []
    assert [len(s) for s in stream.push([1], torch.zeros(1, 8, 0, dtype=torch.int64), [None])] == [0]
