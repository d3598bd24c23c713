"""Streaming: whatever the pushes, each utterance is the one that the whole-utterance decode makes of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from octavo.runtime.codec import Codec, CodecStream, eager
from octavo.runtime.errors import RequestError

from .utterances import Utterance, distance, store, utterance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_equals_whole(codec: Codec, codec64: Codec, seed: int, dtype: torch.dtype, tolerance: float) -> None:
    """Random push sizes, starts, activity and ends, known early or late; slots are used again.

    Some are cancelled on the way, which leaves their tails full; their utterance starts anew in whatever slot is free.
    """
    codec, rng = codec if dtype == torch.float32 else codec64, random.Random(seed)
    lengths = [rng.choice([1, 2, 5, 9, 10, 11, 12, 37, 60]) for _ in range(9)]
    waiting = [utterance(T, seed * 100 + i) for i, T in enumerate(lengths)]
    codes = torch.full((4, 100, 8), -7, dtype=torch.int16)
    stream = codec.stream(codes)
    active: dict[int, Utterance] = {}
    finished: list[Utterance] = []
    while waiting or active:
        if active and rng.random() < 0.1:
            waiting.append(active.pop(rng.choice(list(active))).codes)
        for slot in set(range(4)) - active.keys():
            if waiting and rng.random() < 0.5:
                stream.begin(slot)
                active[slot] = Utterance(waiting.pop(), rng.random() < 0.5)
                store(codes, slot, active[slot].codes)
        chosen = [slot for slot in active if rng.random() < 0.7]
        rng.shuffle(chosen)
        pushed = [active[slot].next(rng.choice([1, 2, 4, 10, 25])) for slot in chosen]
        stream.push(chosen, [count for count, _ in pushed], [end for _, end in pushed])
        if rng.random() < 0.6:
            continue
        for slot, _, samples in stream.collect():
            if slot in active:  # else it was cancelled
                active[slot].sound.append(samples)
        for slot in [slot for slot in active if active[slot].done]:
            finished.append(active.pop(slot))
    assert len(finished) == 9
    for done in finished:
        got, want = np.concatenate(done.sound), codec.decoder(done.codes[None])[0].numpy()
        assert got.shape == want.shape and got.dtype == want.dtype
        assert distance(got, want) < tolerance, done.codes.shape


@pytest.mark.parametrize("m", [1, 20, 64])
def test_long_utterance(codec: Codec, m: int) -> None:
    """Beyond 512 frames there is still no seam."""
    codes = utterance(540, 1)
    want = codec.decoder(codes[None])[0].numpy()
    stream = codec.stream(rows(codes))
    for _ in range(0, 540 + 10, m):
        stream.push([0], [m], [540])
    got = sound(stream)
    assert got.shape == want.shape and distance(got, want) < 1e-5


def test_samples_come_as_soon_as_they_are_final(codec: Codec) -> None:
    stream = codec.stream(rows(utterance(30, 2)))
    assert (stream.delay, stream.lookahead) == (9458, 10)
    lengths = []
    for _ in range(14):
        stream.push([0], [1], [None])
        lengths.append(len(sound(stream)))
    assert lengths == [0] * 9 + [142, 960, 960, 960, 960]


def test_biases_do_not_leak_in_from_outside_the_utterance(codec64: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last and the first 400 ms are where they would; and without the masks they do."""
    codes = utterance(25, 3)
    want = codec64.decoder(codes[None])[0].numpy()

    def streamed() -> np.ndarray:
        stream = codec64.stream(rows(codes))
        stream.push([0], [35], [25])
        return sound(stream)

    assert np.abs(streamed() - want).max() < 1e-12 * want.std()
    plain = eager.step
    monkeypatch.setattr(eager, "step", lambda *args: plain(*args[:-1], edge=False))
    leaky = np.abs(streamed() - want) > 1e-3 * want.std()
    assert leaky[:1000].any() and leaky[-1000:].any() and not leaky[960 * 11 : 960 * 14].any()


def test_unnamed_slots_are_frozen(codec64: Codec) -> None:
    stream = codec64.stream(torch.cat([rows(utterance(30, seed)) for seed in range(3)]))
    stream.push([0, 1, 2], [15] * 3, [None] * 3)
    before = [tail[1].clone() for tail in stream._backend.tails]
    stream.push([2, 0], [15, 3], [None] * 2)
    assert all(torch.equal(tail[1], old) for tail, old in zip(stream._backend.tails, before, strict=True))


def test_begin_leaves_nothing_behind(codec64: Codec) -> None:
    """Neither in the tails, were they NaN, nor of the sound that nobody collected."""
    codes = torch.cat([rows(utterance(30, seed)) for seed in range(2)])
    stream, fresh = codec64.stream(codes), codec64.stream(codes)
    stream.push([0, 1], [15, 15], [15, None])
    for tail in stream._backend.tails:
        tail[0] = torch.nan
    stream.begin(0)
    stream.push([0], [12], [None])
    fresh.push([0], [12], [None])
    (other, _, _), (slot, _, got) = stream.collect()
    assert (other, slot) == (1, 0) and np.array_equal(got, sound(fresh))


@pytest.mark.parametrize("frames", [1, 8, 25])
def test_preview(codec64: Codec, frames: int) -> None:
    """Its frames alone, whole; the stream goes on as if there had been none."""
    codes = [utterance(30, seed) for seed in range(2)]
    stream = codec64.stream(torch.cat([rows(some) for some in codes]))
    stream.preview(1, frames)
    stream.preview(0, frames)
    stream.push([0], [40], [30])
    found = stream.collect()
    assert [(slot, preview) for slot, preview, _ in found] == [(1, True), (0, True), (0, False)]
    for (_, _, got), some in zip(found, (codes[1][:, :frames], codes[0][:, :frames], codes[0]), strict=True):
        want = codec64.decoder(some[None])[0].numpy()
        assert got.shape == want.shape and distance(got, want) < 1e-12
    stream.preview(1, frames)
    assert len(stream.collect()[0][2]) == 960 * frames  # also without a push


def test_rows_behind_the_end_are_not_read(codec64: Codec) -> None:
    """A slot's rows may end right behind its last frame, and another utterance's may stand there."""
    codes = utterance(20, 4)
    stored = rows(codes)
    assert stored.shape[1] == 27
    stream = codec64.stream(stored)
    stream.push([0], [30], [20])
    want = sound(stream)
    later = codec64.stream(torch.cat([stored, torch.full((1, 5, 8), 99, dtype=torch.int16)], dim=1))
    later.push([0], [30], [20])
    assert np.array_equal(sound(later), want)


def test_what_is_no_code_counts_as_zero(codec64: Codec) -> None:
    codes = utterance(12, 5)
    wrong = codes.clone()
    codes[0, 3], codes[2, 7], codes[7, 11] = 0, 0, 0
    wrong[0, 3], wrong[2, 7], wrong[7, 11] = 1024, 1025, -1
    sounds = []
    for some in (codes, wrong):
        stream = codec64.stream(rows(some))
        stream.push([0], [22], [12])
        sounds.append(sound(stream))
    assert np.array_equal(*sounds)


def test_end_may_not_come_too_late_or_move(codec: Codec) -> None:
    stream = codec.stream(rows(utterance(20, 0)))
    stream.push([0], [8], [None])
    with pytest.raises(RequestError, match="cannot end at 7"):
        stream.push([0], [1], [7])
    stream.push([0], [1], [8])
    with pytest.raises(RequestError, match="cannot end at 12"):
        stream.push([0], [1], [12])


@pytest.mark.parametrize("slots", [[0, 0], [2], [-1]])
def test_wrong_slots(codec: Codec, slots: list[int]) -> None:
    stream = codec.stream(torch.zeros(2, 40, 8, dtype=torch.int16))
    with pytest.raises(RequestError, match="different numbers below 2"):
        stream.push(slots, [1] * len(slots), [None] * len(slots))
    assert stream.collect() == []


def test_nothing_to_push(codec: Codec) -> None:
    stream = codec.stream(torch.zeros(2, 40, 8, dtype=torch.int16))
    stream.push([], [], [])
    stream.push([1], [0], [None])
    assert stream.collect() == [] == stream.collect(wait=False)


def rows(codes: torch.Tensor) -> torch.Tensor:
    """[8, T] -> [1, T + 7, 8] int16: what one slot's sampler stores."""
    stored = torch.full((1, codes.shape[1] + 7, 8), 1024, dtype=torch.int16)
    store(stored, 0, codes)
    return stored


def sound(stream: CodecStream) -> np.ndarray:
    """What slot 0 has given back."""
    return np.concatenate([np.zeros(0, np.float32), *(samples for slot, _, samples in stream.collect() if slot == 0)])
