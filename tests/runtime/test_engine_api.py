"""The other ways into the engine: several texts at once, event loops, one's own loop, aborts, sessions, faults."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
import torch

from octavo.runtime import CancelledError, CapacityError, Engine, EngineError, OctavoError, RequestError, Voice

SENTENCES = ["The first sentence. ", "And here is a second one! ", "<|style:whispering|>Then a third? ", "The rest"]


@pytest.fixture(scope="module")
def engine(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", max_batch=4) as engine:
        yield engine


@pytest.fixture
def own_loop(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", worker=False) as engine:
        yield engine


def test_a_list_of_texts_is_spoken_together(engine):
    texts = [f"Text number {n}." for n in range(6)]
    together = engine.generate(texts, seed=3, max_rows=30)
    alone = [engine.generate(text, seed=3, max_rows=30) for text in texts]
    assert [np.array_equal(a.codes, b.codes) for a, b in zip(together, alone, strict=True)] == [True] * 6
    with pytest.raises(RequestError, match="empty"):
        engine.generate(["Fine.", ""], seed=3, max_rows=30)
    assert engine.generate([]) == []


def test_async_streams_run_side_by_side_and_can_be_left(engine):
    want = engine.generate("Asynchronous.", seed=5, max_rows=60)

    async def collect(seed: int) -> np.ndarray:
        return np.concatenate([c.pcm async for c in engine.astream("Asynchronous.", seed=seed, max_rows=60)])

    async def leave_early() -> None:
        async for _ in engine.stream("Too long for me.", max_rows=2000, guard=False):
            break

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.stream("Too slow for me.", max_rows=2000, guard=False).aresult()

    async def everything() -> list:
        return await asyncio.gather(collect(5), collect(6), leave_early(), give_up(), collect(5))

    first, other, _, _, again = asyncio.run(everything())
    for pcm in (first, again):  # the codec's sums take another order in another batch
        np.testing.assert_allclose(pcm, want.pcm, atol=1e-5 * np.std(want.pcm))
    assert np.abs(other - want.pcm).max() > 0.1 * np.std(want.pcm)


def test_a_host_may_own_the_loop(own_loop, engine):
    stream = own_loop.stream("My loop.", seed=2, max_rows=40)
    assert own_loop._driver._mailbox._thread is None
    steps = 0
    while own_loop.step():
        steps += 1
    assert steps > 30 and own_loop.stats().requests == 0
    assert np.array_equal(stream.result().codes, engine.generate("My loop.", seed=2, max_rows=40).codes)
    assert np.array_equal(own_loop.generate("My loop.", seed=2, max_rows=40).codes, stream.result().codes)
    with pytest.raises(OctavoError, match="worker=False"):
        engine.step()


def test_several_threads_may_share_an_engine_without_worker(own_loop, engine):
    got = {}
    threads = [
        threading.Thread(
            target=lambda n=n: got.update({n: own_loop.generate(f"Thread {n}.", seed=n, max_rows=30).codes})
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = {n: engine.generate(f"Thread {n}.", seed=n, max_rows=30).codes for n in range(4)}
    assert all(np.array_equal(got[n], want[n]) for n in want)


def test_a_session_without_worker_waits_for_text_of_another_thread(own_loop):
    with own_loop.session(seed=1, max_rows=30) as session:
        heard = []
        listener = threading.Thread(target=lambda: heard.extend(session))
        listener.start()
        time.sleep(0.1)
        session.push("Hello there.")
        session.close()
        listener.join(20)
        assert sum(len(chunk.pcm) for chunk in heard) == 23 * 960


def test_an_engine_without_worker_works_in_an_event_loop(own_loop):
    async def collect() -> int:
        return sum([len(c.pcm) async for c in own_loop.stream("Asynchronous.", seed=2, max_rows=40)])

    assert asyncio.run(collect()) == 33 * 960


def test_abort_by_id_from_another_thread(engine):
    stream = engine.stream("Abort me.", max_rows=2000, guard=False)
    next(stream)
    threading.Thread(target=engine.abort, args=(stream.id,)).start()
    with pytest.raises(CancelledError):
        stream.result()
    engine.abort(stream.id)
    engine.abort("nobody's")


def test_stats_tell_what_runs(own_loop):
    before = own_loop.stats()
    streams = [own_loop.stream("Count me.", max_rows=40, guard=False, seed=n) for n in range(10)]
    own_loop.step()
    during = own_loop.stats()
    assert (during.requests, during.running, during.waiting, during.max_batch) == (10, 8, 2, 8)
    assert during.free_pages < before.free_pages == before.num_pages and during.rows == 16
    for stream in streams:
        stream.result()
    after = own_loop.stats()
    assert (after.requests, after.running, after.rows, after.failure) == (0, 0, 400, None)


def test_warmup_leaves_nothing_behind(own_loop):
    own_loop.warmup()
    assert own_loop.stats().requests == 0 and own_loop.stats().free_pages == own_loop.stats().num_pages


def test_a_session_speaks_what_its_whole_text_would(engine):
    """Pushed letter by letter, every sentence a piece of its own; tags hold until they are replaced."""
    options = {"seed": 4, "max_rows": 40}
    with engine.session(**options) as session:
        for letter in "".join(SENTENCES):
            session.push(letter)
        session.close()
        chunks = list(session)
    first = engine.generate("The first sentence.", **options)
    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    assert max(chunk.segment for chunk in chunks) == 3
    assert np.array_equal(pcm[: len(first.pcm) - 2400], first.pcm[:-2400])  # but for the fade before the next piece
    assert [chunk.start for chunk in chunks] == np.cumsum([0, *(len(chunk.pcm) for chunk in chunks)])[:-1].tolist()


def test_a_session_begins_to_speak_before_its_text_ends(engine):
    with engine.session(seed=1, max_rows=40) as session:
        session.push("Version 3.")
        session.push("14 is out, Dr. Who. ")
        session.push("And")
        assert len(next(session).pcm) > 0


def test_a_session_can_be_interrupted_and_goes_on(engine):
    with engine.session(seed=1, max_rows=200, guard=False) as session:
        session.push("A long explanation that nobody wants. And more of it. ")
        session.flush()
        next(session)
        session.cancel()
        session.push("Sorry")
        session.push(", what?")
        session.close()
        pcm = np.concatenate([chunk.pcm for chunk in session])
    want = engine.generate("Sorry, what?", seed=1, max_rows=200, guard=False)
    assert np.array_equal(pcm, want.pcm)


def test_a_closed_session_can_still_be_cancelled_and_two_may_listen(engine):
    with engine.session(max_rows=2000, guard=False) as session:
        session.push("A long story.")
        session.close()
        next(session)
        threads = [threading.Thread(target=lambda: list(session)) for _ in range(2)]
        for thread in threads:
            thread.start()
        session.cancel()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def test_a_piece_that_does_not_fit_leaves_the_others_in_their_places(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32", max_context=400) as engine:
        with engine.session(seed=1, max_rows=60, guard=False) as session:
            session.push("The first words. ")
            with pytest.raises(CapacityError):
                session.push("x" * 290 + " " + "y" * 280 + ". And")
                session.flush()
            session.push("The last words.")
            session.close()
            chunks = list(session)
        assert chunks[-1].segment == chunks[-1].segments - 1
        want = engine.generate("The first words.", seed=1, max_rows=60, guard=False).pcm
        pcm = np.concatenate([chunk.pcm for chunk in chunks if chunk.segment == 0])
        np.testing.assert_allclose(pcm[:-2400], want[:-2400], atol=1e-5 * np.std(want))


def test_a_dropped_session_stops_and_one_without_text_ends_with_its_engine(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32") as engine:
        session = engine.session(max_rows=2000, guard=False)
        session.push("Nobody listens. To")
        next(session)
        del session
        gc.collect()
        deadline = time.monotonic() + 20
        while engine.stats().requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.stats().requests == 0
        silent = engine.session()
        engine.close()
        with pytest.raises(CancelledError):
            next(silent)


def test_a_session_left_early_costs_nothing(engine):
    with engine.session(max_rows=2000, guard=False) as session:
        session.push("Hello there. And")
        next(session)
    with pytest.raises(StopIteration):
        next(session)
    with pytest.raises(RequestError, match="closed"):
        session.push("More.")
    with engine.session() as silent:
        silent.push("  ")
        silent.close()
        assert list(silent) == []


def test_bad_text_in_a_session_is_refused_and_the_rest_is_spoken(engine):
    with engine.session(seed=1, max_rows=30) as session:
        session.push("Fine. ")
        with pytest.raises(RequestError):
            session.push(b"bytes")
        with pytest.raises(RequestError, match="20,000"):
            session.push("x" * 20_001)
        session.close()
        assert sum(len(chunk.pcm) for chunk in session) == 23 * 960
    with pytest.raises(RequestError, match="temperature"):
        engine.session(temperature=-1)
    with pytest.raises(RequestError, match="first_chunk"):
        engine.session(first_chunk="never")


def test_a_session_in_an_event_loop(engine):
    async def speak() -> int:
        samples = 0
        with engine.session(seed=1, max_rows=30) as session:
            session.push("Hello there. ")
            session.close()
            async for chunk in session:
                samples += len(chunk.pcm)
        return samples

    assert asyncio.run(speak()) == 23 * 960


def test_an_error_of_the_gpu_ends_the_engine_and_hangs_nobody(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32") as engine:

        def broken() -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        engine._runner.decode = broken
        streams = [engine.stream("Broken.", max_rows=30) for _ in range(3)]
        with engine.session(max_rows=30) as session:
            session.push("Hello. There")
            for stream in streams:
                with pytest.raises(EngineError, match="illegal memory access"):
                    stream.result()
        with pytest.raises(EngineError, match="stopped"):
            engine.generate("Anybody there?")
        assert "illegal" in engine.stats().failure


def test_a_kernel_that_fails_on_a_dead_device_ends_the_engine_too(tiny_dir):
    with Engine.load(tiny_dir, device="cpu", dtype="fp32") as engine:

        def broken(*_: object) -> None:
            raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

        engine._runner.prefill = engine._runner.synchronize = broken
        for _ in range(2):
            with pytest.raises(EngineError, match="stopped"):
                engine.generate("Anybody there?")


def test_an_action_that_fails_does_not_swallow_those_behind_it(own_loop):
    stream = own_loop.stream("Hello.", max_rows=30, seed=1)
    own_loop._driver._mailbox._actions.insert(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.result()


def test_a_prompt_without_memory_fails_alone(engine):
    prefill = engine._runner.prefill

    def fails(chunks):
        if any(chunk.sequence.prompt_rows > 100 for chunk in chunks):
            raise torch.OutOfMemoryError("no memory")
        prefill(chunks)

    engine._runner.prefill = fails
    try:
        good, bad = engine.stream("Good.", max_rows=40, seed=1), engine.stream("Bad. " * 40, max_rows=40)
        with pytest.raises(CapacityError, match="no memory left"):
            bad.result()
        assert len(good.result().codes)
    finally:
        del engine._runner.prefill


def test_deterministic_engines_compute_the_same_bits_in_any_company(tiny_dir):
    """bf16, where the order of a sum would show: alone, with the voice's part reused, and among 63 others."""
    with Engine.load(tiny_dir, device="cpu", dtype="bf16", deterministic=True, max_batch=64, kv_rows=16384) as engine:
        codes = np.random.default_rng(0).integers(0, 1024, (30, 8))
        voice = Voice(codes=codes, transcript="Said.", codec=engine.codec.fingerprint)
        ask = {"voice": voice, "seed": 77, "max_rows": 40, "temperature": 1.0}
        logits, seen = engine.model.logits, []
        engine.model.logits = lambda hidden: seen.append(logits(hidden)) or seen[-1]

        def rows_of(speech) -> set[bytes]:
            computed = {row.view(torch.int16).numpy().tobytes() for batch in seen for row in batch}
            seen.clear()
            assert speech.usage.rows == 40
            return computed

        alone = rows_of(engine.generate("Who else is here?", **ask))
        assert len(alone) == 40
        again = engine.generate("Who else is here?", **ask)
        assert again.usage.reused_tokens and rows_of(again) == alone
        streams = [engine.stream(f"Other {n}. " * (n % 9 + 1), seed=n, max_rows=12 + n // 4) for n in range(40)]
        mine = engine.stream("Who else is here?", **ask)
        streams += [engine.stream(f"Other {n}. " * (n % 9 + 1), seed=n, max_rows=12 + n // 4) for n in range(23)]
        mine = mine.result()
        assert len([stream.result() for stream in streams]) == 63
        assert rows_of(mine) > alone
