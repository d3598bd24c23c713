"""Pages and slots under random load: nobody shares what is not a voice's prefix, nothing is lost, nobody overtakes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.errors import CapacityError
from octavo.runtime.guard import LOOP_ROWS, Guard
from octavo.runtime.kv_cache import PagePool
from octavo.runtime.prompt import Prompt
from octavo.runtime.scheduler import PREFILL_ROWS, Scheduler, Sequence


def sequence(prompt_rows: int, max_rows: int, voice: bytes | None = None, prefix: int = 0) -> Sequence:
    return Sequence(Prompt([0] * prompt_rows, None, prefix), SamplingParams(max_rows=max_rows), voice)


loads = st.lists(
    st.tuples(st.integers(2, 90), st.integers(8, 60), st.sampled_from([None, b"a", b"b", b"c"]), st.integers(1, 9)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(loads, st.integers(1, 4), st.integers(1, 8), st.randoms(use_true_random=False))
def test_any_load_is_served_in_order_and_leaves_nothing_behind(load, max_batch, page_size, chance):
    config = EngineConfig(max_batch=max_batch, max_context=256, kv_rows=320, page_size=page_size)
    scheduler, life = Scheduler(config), {}
    waiting, order = [], []
    for rows, max_rows, voice, rounds in load:
        # All prompts of a voice begin with the same prefix, of a length that belongs to the voice.
        prefix = {b"a": 3, b"b": 30, b"c": 60}.get(voice, 0)
        waiting.append(sequence(prefix + rows, max_rows, voice, prefix))
        life[waiting[-1]] = rounds
    arrived = list(waiting)
    for _ in range(1000):
        for item in waiting[:3]:
            scheduler.add(item)
        del waiting[:3]
        if not (scheduler.busy or waiting):
            break
        step = scheduler.schedule()
        order += step.prefill
        assert step.prefill or step.decode, "nobody runs although somebody waits"
        check(scheduler, page_size)
        scheduler.prefilled(step.prefill)
        for item in step.prefill + step.decode:
            life[item] -= 1
            if life[item] <= 0 or chance.random() < 0.05:
                scheduler.finish(item)
        if scheduler.waiting and chance.random() < 0.1:
            cancelled = chance.choice(list(scheduler.waiting))
            scheduler.finish(cancelled)
            arrived.remove(cancelled)
    assert order == arrived
    pool = scheduler.pool
    assert pool.free_pages + pool.kept_pages == pool.num_pages
    assert sorted(scheduler._free_slots) == list(range(max_batch))


def check(scheduler: Scheduler, page_size: int) -> None:
    running = scheduler.running
    assert len({item.slot for item in running}) == len(running)
    owners: dict[int, Sequence] = {}
    for item in running:
        assert len(item.pages) * page_size >= item.prompt_rows + item.max_rows
        assert item.reused_rows in (0, item.prompt.prefix_length)
        if item.copy:  # the page that the prefix fills in part, into the sequence's own
            assert item.reused_rows % page_size and item.copy[1] == item.pages[item.reused_rows // page_size]
            assert item.copy[0] not in item.pages
        assert 0 not in item.pages and len(set(item.pages)) == len(item.pages)
        for place, page in enumerate(item.pages):
            shared = owners.setdefault(page, item)
            if shared is not item:  # only the whole pages of the same voice's prefix
                assert shared.voice_key == item.voice_key is not None
                assert (place + 1) * page_size <= item.prompt.prefix_length and shared.pages[place] == page


def test_two_new_requests_with_one_voice_share_from_the_second_step_on():
    scheduler = Scheduler(EngineConfig(max_batch=4, kv_rows=2048))
    first, second, other = (sequence(60, 20, v, 40) for v in (b"v", b"v", None))
    for item in (first, second, other):
        scheduler.add(item)
    step = scheduler.schedule()
    assert step.prefill == [first]
    scheduler.prefilled(step.prefill)
    assert scheduler.schedule().prefill == [second, other]
    assert second.reused_rows == 40 and second.pages[:2] == first.pages[:2]
    assert second.copy == (first.pages[2], second.pages[2]) and other.copy is None


def test_a_prefix_is_dropped_only_when_pages_run_short_and_nobody_uses_it():
    pool = PagePool(6, 4)
    used = pool.reserve(12, b"used")
    pool.keep_prefix(b"used", used.pages, 8)
    idle = pool.reserve(8, b"idle")
    pool.keep_prefix(b"idle", idle.pages, 6)
    pool.release(idle.pages)
    assert pool.free_pages == 1 and pool.has_prefix(b"idle")
    assert pool.reserve(8) is not None and not pool.has_prefix(b"idle")
    assert pool.reserve(16) is None and pool.has_prefix(b"used")
    assert pool.reserve(12, b"used") is not None, "two shared pages and the one that is free"


def test_prompts_are_coalesced_up_to_a_bound():
    scheduler = Scheduler(EngineConfig(max_batch=8, kv_rows=16384, max_context=4096))
    rows = PREFILL_ROWS // 2 - 10
    items = [sequence(rows, 8) for _ in range(3)]
    for item in items:
        scheduler.add(item)
    assert scheduler.schedule().prefill == items[:2]
    assert scheduler.schedule().prefill == items[2:]


def test_what_never_fits_is_refused_at_once():
    scheduler = Scheduler(EngineConfig(max_context=100, kv_rows=64))
    with pytest.raises(CapacityError, match="max_context"):
        scheduler.add(sequence(60, 60))
    with pytest.raises(CapacityError, match="kv_rows"):
        scheduler.add(sequence(60, 30))
    assert not scheduler.busy


@pytest.mark.parametrize("period", [1, 2, 5, 8])
def test_guard_sees_repeated_rows_of_any_short_period(period):
    guard = Guard(3.0)
    for number in range(LOOP_ROWS + period):
        assert guard.reason is None
        guard.add_row(np.full(8, number % period))
    assert guard.reason == "loop"


def test_guard_lets_speech_and_pauses_pass_and_sees_long_silence():
    random, guard = np.random.default_rng(0), Guard(3.0)
    for _ in range(500):
        guard.add_row(random.integers(0, 1024, 8))
    loud, quiet = random.normal(0, 0.1, 25 * 960), random.normal(0, 1e-4, 25 * 960)
    for second in (loud, quiet, quiet, quiet, loud, quiet, quiet, quiet):
        guard.add_pcm(second.astype(np.float32))
    assert guard.reason is None
    guard.add_pcm(quiet.astype(np.float32))
    assert guard.reason == "silence"


def test_guard_sees_a_stuck_first_codebook():
    random, guard = np.random.default_rng(0), Guard(3.0)
    for _ in range(99):
        guard.add_row(np.append(5, random.integers(0, 1024, 7)))
    assert guard.reason is None
    guard.add_row(np.append(5, random.integers(0, 1024, 7)))
    assert guard.reason == "loop"
