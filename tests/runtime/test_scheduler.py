"""Pages and slots under random load: nobody shares what is not a voice's prefix, nothing is lost, nobody overtakes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.errors import CapacityError
from octavo.runtime.kv_cache import PagePool
from octavo.runtime.prompt import Prompt
from octavo.runtime.scheduler import Chunk, Scheduler, Sequence


def sequence(prompt_rows: int, max_rows: int, voice: bytes | None = None, prefix: int = 0) -> Sequence:
    return Sequence(Prompt([0] * prompt_rows, None, prefix), SamplingParams(max_rows=max_rows), voice)


loads = st.lists(
    st.tuples(st.integers(2, 90), st.integers(8, 60), st.sampled_from([None, b"a", b"b", b"c"]), st.integers(1, 9)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(
    loads, st.integers(1, 4), st.integers(1, 8), st.integers(5, 200), st.booleans(), st.randoms(use_true_random=False)
)
def test_any_load_is_served_in_order_and_leaves_nothing_behind(
    load, max_batch, page_size, prefill_rows, deterministic, chance
):
    config = EngineConfig(
        max_batch=max_batch,
        max_context=256,
        kv_rows=320,
        page_size=page_size,
        prefill_rows=prefill_rows,
        deterministic=deterministic,
    )
    scheduler, life = Scheduler(config), {}
    waiting, order = [], []
    for rows, max_rows, voice, rounds in load:
        # All prompts of a voice begin with the same prefix, of a length that belongs to the voice.
        prefix = {b"a": 3, b"b": 30, b"c": 60}.get(voice, 0)
        waiting.append(sequence(prefix + rows, max_rows, voice, prefix))
        life[waiting[-1]] = rounds
    arrived = list(waiting)

    def leave(item: Sequence) -> None:
        scheduler.finish(item)
        scheduler.free_slot(item)

    for _ in range(5000):
        for item in waiting[:3]:
            scheduler.add(item)
        del waiting[:3]
        if not (scheduler.busy or waiting):
            break
        chunks = scheduler.schedule()
        assert chunks or scheduler.running, "nobody runs although somebody waits"
        assert sum(chunk.last - chunk.first for chunk in chunks) <= prefill_rows
        check(scheduler, chunks, page_size)
        scheduler.prefilled(chunks)
        order += [chunk.sequence for chunk in chunks if chunk.completes]
        for item in list(scheduler.running):
            life[item] -= 1
            if life[item] <= 0 or chance.random() < 0.05:
                leave(item)
        for queue in (scheduler.waiting, scheduler.prefilling):
            if queue and chance.random() < 0.1:
                cancelled = chance.choice(list(queue))
                leave(cancelled)
                arrived.remove(cancelled)
        assert [item.lane for item in scheduler.running] == list(range(len(scheduler.running)))
    assert order == arrived
    pool = scheduler.pool
    assert pool.free_pages + pool.kept_pages == pool.num_pages
    assert sorted(scheduler._free_slots) == list(range(config.num_slots))


def check(scheduler: Scheduler, chunks: list[Chunk], page_size: int) -> None:
    running = scheduler.running + scheduler.prefilling
    assert len({item.slot for item in running}) == len(running) <= scheduler.config.max_batch
    for chunk in chunks:
        assert chunk.first == chunk.sequence.computed >= chunk.sequence.reused_rows and chunk.last > chunk.first
        inside = chunk.first < chunk.sequence.prompt.prefix_length < chunk.last
        assert not (scheduler.config.deterministic and (inside or len(chunks) > 1))
    owners: dict[int, Sequence] = {}
    for item in running:
        assert len(item.pages) * page_size >= item.prompt_rows + item.max_rows
        assert item.reused_rows in (0, item.prompt.prefix_length)
        if item.copy:  # the page that the prefix fills in part, into the sequence's own
            assert item.reused_rows % page_size and item.copy[1] == item.pages[item.reused_rows // page_size]
            assert item.copy[0] not in item.pages
        assert 0 not in item.pages and len(set(item.pages)) == len(item.pages)
        for place, page in enumerate(item.pages.tolist()):
            shared = owners.setdefault(page, item)
            if shared is not item:  # only the whole pages of the same voice's prefix
                assert shared.voice_key == item.voice_key is not None
                assert (place + 1) * page_size <= item.prompt.prefix_length and shared.pages[place] == page


def test_two_new_requests_with_one_voice_share_from_the_second_step_on():
    scheduler = Scheduler(EngineConfig(max_batch=4, kv_rows=2048))
    first, second, other = (sequence(60, 20, v, 40) for v in (b"v", b"v", None))
    for item in (first, second, other):
        scheduler.add(item)
    chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == [first]
    scheduler.prefilled(chunks)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [second, other]
    assert second.reused_rows == 40 and second.pages[:2].tolist() == first.pages[:2].tolist()
    assert second.copy == (first.pages[2], second.pages[2]) and other.copy is None


def test_a_prefix_is_dropped_only_when_pages_run_short_and_nobody_uses_it():
    pool = PagePool(6, 4)
    used = pool.reserve(12, b"used")
    pool.keep_prefix(b"used", used.pages, 8)
    idle = pool.reserve(8, b"idle")
    pool.keep_prefix(b"idle", idle.pages, 6)
    pool.release(idle.pages)
    assert pool.free_pages == 1 and (b"idle" in pool._prefixes)
    assert pool.reserve(8) is not None and b"idle" not in pool._prefixes
    assert pool.reserve(16) is None and (b"used" in pool._prefixes)
    assert pool.reserve(12, b"used") is not None, "two shared pages and the one that is free"


def test_prompts_are_coalesced_and_long_ones_chunked():
    scheduler = Scheduler(EngineConfig(max_batch=8, kv_rows=16384, max_context=4096, prefill_rows=100))
    first, second, long = (sequence(rows, 8) for rows in (40, 40, 250))
    for item in (first, second, long):
        scheduler.add(item)
    passes = []
    while scheduler.busy and len(scheduler.running) < 3:
        chunks = scheduler.schedule()
        passes.append([(chunk.sequence, chunk.first, chunk.last) for chunk in chunks])
        scheduler.prefilled(chunks)
    assert passes == [[(first, 0, 40), (second, 0, 40), (long, 0, 20)], [(long, 20, 120)], [(long, 120, 220)],
                      [(long, 220, 250)]]  # fmt: skip
    assert [item.lane for item in (first, second, long)] == [0, 1, 2]


def test_when_many_speak_newcomers_wait_some_rows_and_come_together():
    scheduler = Scheduler(EngineConfig(max_batch=64, kv_rows=16384))
    passes = []
    for step in range(50):
        for _ in range(32 if step == 0 else 1):
            scheduler.add(sequence(10, 8))
        chunks = scheduler.schedule()
        scheduler.prefilled(chunks)
        passes.append(len(chunks))
        if step:
            for item in scheduler.running[: len(chunks)]:
                scheduler.finish(item)
                scheduler.free_slot(item)
    assert passes[0] == 32 and passes[1:] == [0, 0, 3] * 16 + [0], "two rows of patience for 32 who speak"


def test_nobody_waits_for_company_that_there_is_no_lane_for():
    scheduler = Scheduler(EngineConfig(max_batch=33, kv_rows=16384))
    for _ in range(32):
        scheduler.add(sequence(10, 8))
    scheduler.prefilled(scheduler.schedule())
    scheduler.add(sequence(10, 8))
    assert len(scheduler.schedule()) == 1


def test_who_leaves_makes_room_for_the_last_lane():
    scheduler = Scheduler(EngineConfig(max_batch=4))
    items = [sequence(10, 8) for _ in range(4)]
    for item in items:
        scheduler.add(item)
    scheduler.prefilled(scheduler.schedule())
    assert scheduler.finish(items[1]) == (3, 1) and items[3].lane == 1
    assert scheduler.finish(items[1]) is None
    assert scheduler.finish(items[2]) == (2, 2)
    assert scheduler.running == [items[0], items[3]]


def test_what_never_fits_is_refused_at_once():
    scheduler = Scheduler(EngineConfig(max_context=100, kv_rows=64))
    with pytest.raises(CapacityError, match="max_context"):
        scheduler.add(sequence(60, 60))
    with pytest.raises(CapacityError, match="kv_rows"):
        scheduler.add(sequence(60, 30))
    assert not scheduler.busy
