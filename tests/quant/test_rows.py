"""Rows that the model speaks: as the engine says them, as the walk reads them, and the same when asked again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.quant import rows, texts
from octavo.runtime import RequestError, Voice, text
from octavo.runtime.delay import BOC, EOC, undelay
from octavo.runtime.prompt import PLACEHOLDER, build

from .speakers import speaker_checkpoint

TEXTS = texts.CALIBRATION[:5]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with rows.speaker(speaker_checkpoint(tmp_path_factory.mktemp("rows")), "cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def drawn(engine):
    return rows.draw(engine, TEXTS, max_rows=40, seed=7)


def test_rows_are_what_the_engine_says(engine, drawn):
    assert {one.stopped for one in drawn} == {True, False}
    for number, one in enumerate(drawn):
        assert one.text == TEXTS[number] and one.ask.seed == 7 + number
        T = len(one.codes)
        assert len(one.rows) == T + 7 * one.stopped
        assert (EOC in one.rows[:, 0]) == one.stopped and (T == 33 or one.stopped)
        for c in range(8):
            assert (one.rows[:c, c] == BOC).all()
            assert np.array_equal(one.rows[c : T + c, c], one.codes[: len(one.rows) - c, c])
        if one.stopped:
            assert np.array_equal(undelay(one.rows.numpy()), one.codes)
    (one,) = rows.draw(engine, TEXTS[2:3], max_rows=40, seed=3)
    speech = engine.generate(TEXTS[2], seed=3, max_rows=40)
    assert np.array_equal(one.codes, speech.codes) and one.finish_reason == speech.finish_reason


def test_every_other_one_has_the_voice_of_the_one_before(engine, drawn):
    for number, one in enumerate(drawn):
        voice = one.ask.voice
        assert (voice is not None) == (number % 2 == 1) == bool(len(one.reference))
        want = build(engine.tokenizer, one.text)
        if voice:
            before = drawn[number - 1]
            assert np.array_equal(voice.codes, before.codes) and voice.transcript == text.without_tags(before.text)
            want = build(engine.tokenizer, one.text, voice.codes, voice.transcript)
            assert np.array_equal(one.reference, want.reference_rows)
        assert one.ids.tolist() == want.ids and one.ids.dtype == one.rows.dtype == one.reference.dtype == torch.int64
        assert (one.ids == PLACEHOLDER).sum() == len(one.reference)


def test_the_same_rows_every_time_and_when_repeated(engine, drawn):
    for again in (rows.draw(engine, TEXTS, max_rows=40, seed=7), rows.repeat(engine, drawn)):
        assert all(torch.equal(a.rows, b.rows) for a, b in zip(drawn, again, strict=True))
    other = rows.draw(engine, TEXTS[:2], max_rows=40, seed=8)
    assert not torch.equal(other[0].rows, drawn[0].rows)


def test_a_voice_may_be_given_and_progress_is_told(engine):
    voice = Voice(np.ones((5, 8), np.int16), transcript="One.", codec=engine.codec.fingerprint)
    seen = []
    first, second, third = rows.draw(
        engine, TEXTS[:3], max_rows=20, voice=voice, progress=lambda done, total: seen.append((done, total))
    )
    assert first.ask.voice is voice is third.ask.voice and np.array_equal(second.ask.voice.codes, first.codes)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_runaway_is_no_voice_and_a_long_one_is_cut():
    said = {
        "ids": None,
        "reference": None,
        "rows": None,
        "text": "<|style:whispering|>So.",
        "ask": None,
        "silence": 0.0,
    }
    codes = np.zeros((300, 8), np.int16)
    assert rows._voice_of(rows.Drawn(**said, codes=codes, finish_reason="loop"), "c") is None
    long = rows._voice_of(rows.Drawn(**said, codes=codes, finish_reason="stop"), "c")
    assert len(long.codes) == 250 and long.transcript is None
    assert rows._voice_of(rows.Drawn(**said, codes=codes[:9], finish_reason="stop"), "c").transcript == "So."


def test_silence_at_the_end():
    pcm = np.zeros(960 * 10, np.float32)
    assert rows._silence_at_end(pcm) == pytest.approx(0.4)
    pcm[960 * 3] = 1.0
    assert rows._silence_at_end(pcm) == pytest.approx(0.24)
    assert rows._silence_at_end(pcm[:0]) == 0


def test_a_text_that_cannot_be_spoken_is_refused(engine):
    with pytest.raises(RequestError, match="empty"):
        rows.draw(engine, ["Fine.", " "], max_rows=20)
    assert engine.stats().requests == 0
