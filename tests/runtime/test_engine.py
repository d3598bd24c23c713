"""The engine: streams, batches, seeds, voices, cancelling, and what bad requests must not cost others."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from octavo.runtime import (
    CancelledError,
    CapacityError,
    Engine,
    OctavoError,
    RequestError,
    Voice,
    VoiceError,
)
from octavo.runtime.utterance import CROSSFADE

LONG = "The first sentence of a long text says this, and it takes its time to say it all. " * 9


@pytest.fixture(scope="module")
def engine(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", max_batch=8, kv_rows=16384) as engine:
        yield engine


def random_voice(engine: Engine, frames: int = 40, transcript: str | None = "Said before.", seed: int = 0) -> Voice:
    codes = np.random.default_rng(seed).integers(0, 1024, (frames, 8))
    return Voice(codes=codes, transcript=transcript, codec=engine.codec.fingerprint)


def idle(engine: Engine) -> bool:
    """Nothing runs or waits, and all pages but the kept prefixes are free."""
    deadline = time.monotonic() + 5
    while engine._loop.working or engine._loop.requests:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    scheduler = engine._loop.scheduler
    pool = scheduler.pool
    slots = sorted(scheduler._free_slots) == list(range(engine.config.num_slots))
    return slots and pool.free_pages + pool.kept_pages == pool.num_pages


def test_generate_collects_stream_and_equals_the_whole_decode(engine):
    options = {"seed": 3, "max_rows": 70}
    chunks = list(engine.stream("One decode loop.", **options))
    speech = engine.generate("One decode loop.", **options)
    assert np.array_equal(np.concatenate([chunk.pcm for chunk in chunks]), speech.pcm)
    assert [chunk.start for chunk in chunks] == np.cumsum([0] + [len(chunk.pcm) for chunk in chunks[:-1]]).tolist()
    assert speech.pcm.dtype == np.float32 and speech.codes.dtype == np.int16 and speech.codes.shape == (63, 8)
    assert len(speech.pcm) == 960 * 63 and speech.sample_rate == 24000
    np.testing.assert_allclose(speech.pcm, engine.decode(speech.codes), atol=1e-5 * np.std(speech.pcm))
    assert speech.finish_reason == "length" and speech.usage.rows == 70
    assert speech.usage.audio_seconds == 63 / 25 and 0 < speech.usage.first_audio_seconds < speech.usage.seconds


@pytest.mark.parametrize("policy, rows, samples", [("exact", 18, 11 * 960 - 9458), ("fast", 8, 960 - CROSSFADE)])
def test_the_first_chunk_comes_with_row_18_or_8(tiny_dir, policy, rows, samples):
    """C9: an exact first frame needs 8 rows for itself and 10 for the decoder's look-ahead; no row more."""
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", worker=False) as engine:
        stream = engine.stream("When do you speak?", max_rows=64, seed=1, first_chunk=policy)
        first = next(stream)
        assert engine.stats().rows == rows and len(first.pcm) == samples


def test_a_fast_first_chunk_passes_into_the_exact_sound(engine):
    options = {"seed": 3, "max_rows": 70, "guard": False}
    exact, fast = engine.generate("Soon.", **options), engine.generate("Soon.", **options, first_chunk="fast")
    assert np.array_equal(fast.codes, exact.codes) and len(fast.pcm) == len(exact.pcm)
    frames = engine._loop.sounds.lookahead  # at most so many are provisional
    assert np.array_equal(fast.pcm[frames * 960 :], exact.pcm[frames * 960 :])
    assert not np.array_equal(fast.pcm[: frames * 960], exact.pcm[: frames * 960])
    assert np.abs(np.diff(fast.pcm)).max() <= 1.5 * np.abs(np.diff(exact.pcm)).max()  # no click where they meet


def test_the_same_seed_gives_the_same_codes_in_any_company(engine):
    """Alone, and beside seven others added before and after, of other lengths, voices and sampling."""
    ask = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 77, "max_rows": 90}
    alone = engine.generate("Who else is here?", **ask)
    assert np.array_equal(engine.generate("Who else is here?", **ask).codes, alone.codes)
    for order in (0, 4, 7):
        others = [
            {"content": "Other " * (n + 1), "seed": n, "max_rows": 40 + 10 * n, "temperature": 0.2 * n, "top_k": 10 * n}
            for n in range(7)
        ]
        streams = [engine.stream(**other, voice=random_voice(engine, seed=order)) for other in others[:order]]
        mine = engine.stream("Who else is here?", **ask)
        streams += [engine.stream(**other) for other in others[order:]]
        assert np.array_equal(mine.result().codes, alone.codes)
        assert len({stream.result().usage.rows for stream in streams}) == 7
    assert not np.array_equal(engine.generate("Who else is here?", **ask | {"seed": 78}).codes, alone.codes)


def test_more_requests_than_slots_are_all_served(engine):
    streams = [engine.stream(f"Number {n}.", seed=n, max_rows=20 + n) for n in range(20)]
    assert [stream.result().usage.rows for stream in streams] == [20 + n for n in range(20)]
    assert idle(engine)


def test_a_voice_is_prefilled_once_and_changes_nothing_when_reused(engine, tiny_dir):
    voice = random_voice(engine, frames=60, seed=9)
    options = {"seed": 4, "max_rows": 40, "temperature": 0.0}
    first, again = (engine.generate("A text.", voice, **options) for _ in range(2))
    other = engine.generate("Another text.", voice, **options)
    assert first.usage.reused_tokens == 0
    prefix = 60 + 7 + 3 + len("Said before.")  # the rows of the codes, three structural tokens, a byte per letter
    assert again.usage.reused_tokens == other.usage.reused_tokens == prefix and prefix % 16
    assert np.array_equal(first.codes, again.codes)
    with Engine.load(tiny_dir, device="cpu", dtype="fp32") as fresh:
        assert np.array_equal(fresh.generate("Another text.", voice, **options).codes, other.codes)
    # One code or the transcript different: another voice.
    codes = voice.codes.copy()
    codes[50, 7] ^= 1
    for changed in (
        Voice(codes=codes, transcript=voice.transcript, codec=voice.codec),
        Voice(codes=voice.codes, transcript="Said otherwise.", codec=voice.codec),
    ):
        assert engine.generate("A text.", changed, **options).usage.reused_tokens == 0


def test_long_text_is_spoken_in_pieces_by_one_voice(engine):
    speech = engine.generate(LONG, seed=5, max_rows=60)
    assert len(speech.segments) > 2
    assert [s.start_frame for s in speech.segments[1:]] == [s.end_frame for s in speech.segments[:-1]]
    assert speech.segments[-1].end_frame * 960 == len(speech.pcm) == 960 * len(speech.codes)
    first = speech.segments[0].end_frame
    carried = Voice(codes=speech.codes[:first], transcript=speech.segments[0].text, codec=engine.codec.fingerprint)
    second = speech.segments[1]
    alone = engine.generate(second.text, carried, seed=6, max_rows=60)
    assert np.array_equal(alone.codes, speech.codes[second.start_frame : second.end_frame])
    whole = engine.generate(LONG, seed=5, max_rows=60, split="none")
    assert len(whole.segments) == 1 and whole.usage.prompt_tokens > len(LONG) * 0.9


def test_seams_do_not_click(engine):
    speech = engine.generate(LONG, seed=5, max_rows=60)
    usual = np.abs(np.diff(speech.pcm)).max()
    for segment in speech.segments[1:]:
        at = segment.start_frame * 960
        assert np.abs(speech.pcm[at - 2 : at + 2]).max() < 1e-3 < usual


def test_streamed_pieces_equal_generated_ones(engine):
    chunks = list(engine.stream(LONG, seed=5, max_rows=60))
    speech = engine.generate(LONG, seed=5, max_rows=60)
    assert np.array_equal(np.concatenate([chunk.pcm for chunk in chunks]), speech.pcm)
    assert sorted({chunk.segment for chunk in chunks}) == list(range(len(speech.segments)))


def test_guard_stops_a_loop_and_can_be_switched_off(engine):
    """Greedy decoding of random weights ends in a loop: seen within a few seconds, not at the row limit."""
    guarded = engine.generate(LONG[:250], temperature=0, max_rows=1000, split="none")
    free = engine.generate(LONG[:250], temperature=0, max_rows=400, split="none", guard=False)
    assert guarded.finish_reason == "loop" and guarded.usage.rows < 400
    assert free.finish_reason == "length" and free.usage.rows == 400
    assert np.array_equal(free.codes[: len(guarded.codes)], guarded.codes)


def test_the_row_limit_follows_the_length_of_the_text_unless_the_guard_is_off(engine):
    short, longer = (engine.generate(text, seed=1).usage.rows for text in ("Hi.", "Hi there, how are you today?"))
    assert 100 < short < longer < 400
    assert engine.generate("Hi.", seed=1, guard=False, max_rows=longer).usage.rows == longer


def test_seed_is_drawn_and_told(engine):
    first, second = (engine.generate("Any.", max_rows=20) for _ in range(2))
    assert first.seed != second.seed
    assert np.array_equal(engine.generate("Any.", max_rows=20, seed=first.seed).codes, first.codes)


@pytest.mark.parametrize("how", ["cancel", "close", "drop", "with"])
def test_cancelling_frees_slot_and_pages_and_leaves_others_alone(engine, how):
    ask = {"seed": 8, "max_rows": 120}
    want = engine.generate("A neighbour.", **ask).codes
    neighbour = engine.stream("A neighbour.", **ask)
    stream = engine.stream("Cancel me, please.", max_rows=2000, guard=False, temperature=1.0)
    next(stream)
    if how == "cancel":
        threading.Thread(target=stream.cancel).start()
        with pytest.raises(CancelledError, match="cancelled"):
            stream.result()
    elif how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    assert np.array_equal(neighbour.result().codes, want)
    assert idle(engine)


def test_a_waiting_request_can_be_cancelled(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", max_batch=1) as engine:
        running = engine.stream("Runs.", max_rows=60, seed=1)
        waiting = engine.stream("Waits.", max_rows=60, seed=1)
        waiting.cancel()
        with pytest.raises(CancelledError):
            waiting.result()
        assert running.result().usage.rows == 60 and idle(engine)


def test_many_threads(engine):
    want = {n: engine.generate(f"Thread {n}.", seed=n, max_rows=40).codes for n in range(6)}
    got = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: engine.generate(f"Thread {n}.", seed=n, max_rows=40).codes}))
        for n in want
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[n], want[n]) for n in want)


def test_several_engines_and_closing(tiny_dir):
    one, two = (Engine.load(tiny_dir, device="cpu", dtype="fp32") for _ in range(2))
    streams = [engine.stream("Both at once.", seed=1, max_rows=60) for engine in (one, two)]
    assert np.array_equal(*(stream.result().codes for stream in streams))
    pending = one.stream("Cut off.", max_rows=2000, guard=False)
    one.close()
    one.close()
    with pytest.raises(CancelledError):
        pending.result()
    with pytest.raises(OctavoError, match="closed"):
        one.generate("Too late.")
    assert len(two.generate("Still here.", max_rows=20).codes)
    two.close()


BAD = {
    "empty text": ({"content": ""}, RequestError, "empty"),
    "blank text": ({"content": " \n\t "}, RequestError, "empty"),
    "too long": ({"content": "a" * 20_001}, RequestError, "20,?001|20,?000"),
    "broken unicode": ({"content": "caf\udce9"}, RequestError, "Unicode|UTF-8"),
    "unknown tag, strict": ({"content": "<|emotion:joy|>Hi", "strict": True}, RequestError, "emotion:joy"),
    "temperature": ({"content": "Hi", "temperature": -1}, RequestError, "temperature"),
    "temperature NaN": ({"content": "Hi", "temperature": float("nan")}, RequestError, "temperature"),
    "temperature text": ({"content": "Hi", "temperature": "hot"}, RequestError, "temperature"),
    "top_p": ({"content": "Hi", "top_p": 1.5}, RequestError, "top_p"),
    "top_k": ({"content": "Hi", "top_k": -3}, RequestError, "top_k"),
    "top_k float": ({"content": "Hi", "top_k": 2.5}, RequestError, "top_k"),
    "seed": ({"content": "Hi", "seed": -1}, RequestError, "seed"),
    "max_rows": ({"content": "Hi", "max_rows": 7}, RequestError, "max_rows"),
    "split": ({"content": "Hi", "split": "yes"}, RequestError, "split"),
    "voice name": ({"content": "Hi", "voice": "nobody-of-that-name"}, VoiceError, "nobody-of-that-name"),
    "voice file": ({"content": "Hi", "voice": "missing.safetensors"}, VoiceError, "missing.safetensors"),
    "does not fit": ({"content": "Hi" * 200, "max_rows": 8000, "guard": False}, CapacityError, "max_context"),
    "bytes": ({"content": b"Hi"}, RequestError, "string"),
}


@pytest.mark.parametrize("ask, error, says", BAD.values(), ids=BAD.keys())
def test_bad_requests_get_a_sentence_and_cost_nobody_anything(engine, ask, error, says):
    neighbour = engine.stream("A neighbour.", seed=8, max_rows=40)
    with pytest.raises(error, match=says) as caught:
        engine.stream(**ask)
    assert str(caught.value).endswith(".") and isinstance(caught.value, OctavoError)
    assert neighbour.result().usage.rows == 40 and idle(engine)


def test_a_voice_of_another_codec_is_refused(engine):
    voice = Voice(codes=np.zeros((30, 8), np.int16), name="stranger", codec="0" * 64)
    with pytest.raises(VoiceError, match="stranger.*another codec"):
        engine.generate("Hi", voice)


def test_an_unknown_tag_is_spoken_with_a_warning(engine):
    speech = engine.generate("<|emotion:joy|>Hi <|audio|>there", max_rows=20)
    assert any("emotion:joy" in warning for warning in speech.warnings)
    assert any("<|audio|>" in warning for warning in speech.warnings)


def test_a_failing_step_reaches_every_caller_and_the_engine_lives_on(engine):
    decode = engine._runner.decode
    engine._runner.decode = lambda: 1 / 0
    streams = [engine.stream("Broken.", max_rows=30) for _ in range(3)]
    for stream in streams:
        with pytest.raises(ZeroDivisionError):
            stream.result()
    engine._runner.decode = decode
    assert len(engine.generate("Whole again.", max_rows=30).codes) and idle(engine)


def test_unknown_engine_options_and_devices_raise(tiny_dir):
    for options, says in [({"max_btch": 3}, "max_btch"), ({"device": "tpu9"}, "tpu9"), ({"dtype": "fp8"}, "fp8"),
                          ({"max_batch": 0}, "max_batch"), ({"max_context": 99999}, "max_context")]:  # fmt: skip
        with pytest.raises(RequestError, match=says):
            Engine.load(tiny_dir, **{"device": "cpu"} | options)


def test_a_recording_becomes_a_voice_with_its_warnings(engine):
    t = np.arange(3 * 8000) / 8000
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)) * np.hanning(len(t)) * 0.2
    with pytest.warns(UserWarning, match="8000 Hz"):
        voice = engine.encode_voice((hum.astype(np.float32), 8000), transcript="Hm.", consent="Nobody's voice.")
    assert voice.codes.shape == (75, 8) and voice.transcript == "Hm." and len(voice.source_sha256) == 64
    assert engine.generate("In that voice.", voice, max_rows=20).usage.prompt_tokens > 75 + 7
    assert engine.decode(voice.codes).shape == (75 * 960,)


def test_a_first_piece_too_long_to_carry_is_carried_in_part(engine):
    speech = engine.generate(LONG, seed=5, max_rows=900, guard=False, temperature=2.0, top_k=None)
    assert speech.segments[0].end_frame > 750 and len(speech.segments) > 2


def test_an_engine_on_every_device(tiny_dir, device):
    """Voice, prefix reuse with its page copy, sampling, streaming: nothing of it may hang on the device."""
    with Engine.load(tiny_dir, device=device.type, dtype="fp32") as engine:
        voice = random_voice(engine, frames=60, seed=9)
        first, again = (engine.generate("A text.", voice, seed=4, max_rows=60) for _ in range(2))
        assert first.usage.reused_tokens == 0 < again.usage.reused_tokens
        assert np.array_equal(first.codes, again.codes)
        np.testing.assert_allclose(first.pcm, engine.decode(first.codes), atol=1e-2 * np.std(first.pcm))  # TF32 on CUDA
