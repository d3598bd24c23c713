"""The loop with a model and a codec that cost nothing: any order of arrivals, ends, cancels and faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.bench.null import NEVER, NullRunner, NullSounds
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.errors import CancelledError, CapacityError
from octavo.runtime.loop import Loop
from octavo.runtime.outbox import Outbox
from octavo.runtime.prompt import Prompt
from octavo.runtime.request import Request
from octavo.runtime.scheduler import Scheduler, Sequence
from octavo.runtime.speech import Chunk, Speech
from octavo.runtime.utterance import Utterance

CONFIG = EngineConfig(max_batch=3, max_context=600, kv_rows=1000, page_size=16, prefill_rows=100)


def make_loop(config: EngineConfig = CONFIG) -> Loop:
    return Loop(Scheduler(config), NullRunner(config), NullSounds(config.num_slots))


def ask(
    loop: Loop, prompt_rows: int = 20, max_rows: int = 50, voice: str | None = None, pieces: int = 1, fast: bool = False
) -> Request:
    """A request on its way. The prompts of a voice begin with the same prefix."""
    prefix = {"short": 5, "long": 150}.get(voice or "", 0)

    def start(request: Request, number: int) -> Utterance:
        prompt = Prompt([7] * (prefix + prompt_rows), None, prefix)
        sequence = Sequence(prompt, SamplingParams(max_rows=max_rows), voice and voice.encode())
        utterance = Utterance(sequence, None, fast)
        loop.begin(request, utterance)
        return utterance

    request = Request(["x"] * pieces, start, Outbox(), seed=0, ahead=2, carry=False)
    loop.add(request)
    return request


def run(loop: Loop, steps: int = 10_000) -> int:
    """Until nothing is left to do: the number of steps."""
    for number in range(steps):
        if not loop.working:
            return number
        loop.step()
    raise AssertionError("the loop does not come to rest")


def taken(request: Request) -> list[Chunk | Speech | Exception]:
    items = []
    while not request.out._items.empty():
        item = request.out.get()
        items.append(item if isinstance(item, Chunk | Exception) else item())
    return items


def at_rest(loop: Loop) -> None:
    scheduler, pool = loop.scheduler, loop.scheduler.pool
    assert not (loop.requests or scheduler.busy or loop._owner or loop._launches or loop._fast)
    assert pool.free_pages + pool.kept_pages == pool.num_pages
    assert sorted(scheduler._free_slots) == list(range(scheduler.config.num_slots))
    assert loop.runner.lanes.running == 0 and not any(loop._speaking)
    assert (loop.runner.lanes.host == loop.runner.lanes.idle).all()


def test_a_request_of_every_kind_is_heard_whole():
    loop = make_loop()
    requests = [ask(loop, max_rows=rows, pieces=pieces) for rows, pieces in ((8, 1), (50, 1), (30, 4), (100, 2))]
    run(loop)
    for request, (rows, pieces) in zip(requests, ((8, 1), (50, 1), (30, 4), (100, 2)), strict=True):
        *chunks, speech = taken(request)
        assert isinstance(speech, Speech) and speech.usage.rows == rows * pieces
        assert sum(len(chunk.pcm) for chunk in chunks) == len(speech.pcm) == 960 * (rows - 7) * pieces
        assert [chunk.start for chunk in chunks] == np.cumsum([0, *(len(chunk.pcm) for chunk in chunks)])[:-1].tolist()
        assert speech.finish_reason == "length"
    assert loop.rows == 8 + 50 + 30 * 4 + 100 * 2, "no row beyond a limit that is known beforehand"
    at_rest(loop)


def test_the_models_end_is_kept_to_the_row_although_another_row_is_under_way():
    loop = make_loop()
    request, other = ask(loop, max_rows=300), ask(loop, max_rows=100)
    loop.step()
    loop.runner.ends[request.utterances[0].sequence.slot] = 40
    run(loop)
    speech, neighbour = taken(request)[-1], taken(other)[-1]
    assert speech.usage.rows == 40 and speech.finish_reason == "stop" and len(speech.codes) == 33
    assert neighbour.usage.rows == 100
    at_rest(loop)


def test_a_long_prompt_does_not_keep_others_waiting():
    """Every step that prefills a chunk also gives everybody who decodes their row."""
    loop = make_loop()
    talker = ask(loop, max_rows=200)
    loop.step()
    ask(loop, prompt_rows=450, max_rows=20)
    for _ in range(4):
        before = loop.progress.launched(talker.utterances[0].sequence.slot)
        loop.step()
        assert loop.scheduler.prefilling
        assert loop.progress.launched(talker.utterances[0].sequence.slot) == before + 1
    run(loop)
    at_rest(loop)


def test_a_cancelled_request_leaves_its_lane_and_pages_before_the_next_row():
    loop = make_loop()
    first, second = ask(loop, max_rows=400), ask(loop, max_rows=60)
    for _ in range(25):
        loop.step()
    free = loop.scheduler.pool.free_pages
    loop.end(first, CancelledError("stop"))
    assert len(loop.scheduler.running) == 1 == loop.runner.lanes.running and loop.scheduler.pool.free_pages > free
    third = ask(loop, max_rows=60)
    run(loop)
    assert isinstance(taken(first)[-1], CancelledError)
    assert [taken(request)[-1].usage.rows for request in (second, third)] == [60, 60]
    at_rest(loop)


@pytest.mark.parametrize("pieces", [1, 3])
def test_memory_that_runs_out_in_a_prefill_ends_that_request_alone(pieces):
    """Of eight that come together two do not fit, whatever goes beside them; with them fall the pieces of theirs."""
    loop = make_loop(EngineConfig(max_batch=8 * pieces, max_context=600, kv_rows=8000))
    prefill = loop.runner.prefill

    def fails(chunks):
        if any(chunk.sequence.prompt_rows == 33 + 5 for chunk in chunks):
            raise torch.OutOfMemoryError("no memory")
        prefill(chunks)

    loop.runner.prefill = fails
    requests = [ask(loop, 33 if n in (2, 6) else 20, 40, "short", pieces) for n in range(8)]
    run(loop)
    ends = [taken(request)[-1] for request in requests]
    assert [isinstance(end, CapacityError) for end in ends] == [n in (2, 6) for n in range(8)]
    assert all(end.usage.rows == 40 * pieces for n, end in enumerate(ends) if n not in (2, 6))
    at_rest(loop)


def test_nothing_is_left_after_an_error_of_the_device():
    loop = make_loop()
    requests = [ask(loop, max_rows=100) for _ in range(5)]
    for _ in range(30):
        loop.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.runner, "leave", lambda last, gap: 1 / 0)  # the device is gone
        loop.abandon(RuntimeError("device"))
    assert all(isinstance(taken(request)[-1], RuntimeError) for request in requests)
    at_rest(loop)
    again = ask(loop)
    run(loop)
    assert isinstance(taken(again)[-1], Speech)


class Uncopyable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def test_an_error_that_cannot_be_copied_reaches_everybody_too():
    loop = make_loop()
    requests = [ask(loop), ask(loop)]
    loop.step()
    loop.abandon(Uncopyable("a", "b"))
    assert all(isinstance(taken(request)[-1], Uncopyable) for request in requests)


class AnyLoad(RuleBasedStateMachine):
    """Random arrivals, cancels, ends and steps against what must hold at any time."""

    def __init__(self):
        super().__init__()
        self.loop = make_loop()
        self.asked: list[tuple[Request, int]] = []
        self.cancelled: set[Request] = set()
        self.first_row: list[Sequence] = []  # in the order of their first rows

    @rule(
        prompt_rows=st.integers(2, 160),
        max_rows=st.integers(8, 120),
        voice=st.sampled_from([None, "short", "long"]),
        pieces=st.integers(1, 3),
        fast=st.booleans(),
    )
    def arrive(self, prompt_rows, max_rows, voice, pieces, fast):
        self.asked.append((ask(self.loop, prompt_rows, max_rows, voice, pieces, fast), max_rows * pieces))

    @rule(count=st.integers(1, 60))
    def steps(self, count):
        for _ in range(count):
            self.loop.step()

    @precondition(lambda self: self.loop.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(list(self.loop.requests)))
        self.loop.end(request, CancelledError("stop"))
        self.cancelled.add(request)

    @precondition(lambda self: self.loop.scheduler.running)
    @rule(data=st.data(), rows=st.integers(9, 40))
    def model_ends(self, data, rows):
        sequence = data.draw(st.sampled_from(self.loop.scheduler.running))
        self.loop.runner.ends[sequence.slot] = max(rows, self.loop.progress.launched(sequence.slot) + 1)

    @invariant()
    def lanes_agree(self):
        scheduler, runner = self.loop.scheduler, self.loop.runner
        assert [item.slot for item in scheduler.running] == runner.slots.tolist()
        assert [item.lane for item in scheduler.running] == list(range(len(scheduler.running)))
        for item, line in zip(scheduler.running, runner.lanes.host, strict=False):
            assert line["row"] + 1 == self.loop.progress.launched(item.slot) <= item.max_rows
            assert line["table"][: len(item.pages)].tolist() == item.pages.tolist()
        held = [page for item in (*scheduler.running, *scheduler.prefilling) for page in set(item.pages.tolist())]
        own = [page for page in held if scheduler.pool._holders[page] == 1]
        assert len(own) == len(set(own))

    def teardown(self):
        self.loop.runner.ends[:] = NEVER
        run(self.loop)
        for request, most in self.asked:
            *chunks, end = taken(request)
            if request in self.cancelled:
                assert isinstance(end, CancelledError)
            else:
                assert isinstance(end, Speech) and end.usage.rows <= most
                assert sum(len(chunk.pcm) for chunk in chunks) == len(end.pcm) == 960 * len(end.codes)
        at_rest(self.loop)


TestAnyLoad = AnyLoad.TestCase
TestAnyLoad.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.slow
def test_thousands_of_requests_leave_nothing_behind_and_nobody_waits_for_ever():
    """Poisson arrivals at nearly full load, with ends and cancels: order of first rows is order of arrival."""
    random, config = np.random.default_rng(0), EngineConfig(max_batch=32, max_context=600, kv_rows=12_000)
    loop, asked, ended = make_loop(config), [], 0
    while len(asked) < 3000:
        for _ in range(random.poisson(0.55)):
            asked.append(ask(loop, int(random.integers(10, 90)), int(random.integers(8, 90))))
        loop.step()
        if asked and random.random() < 0.02:
            loop.end(asked[int(random.integers(len(asked)))], CancelledError("stop"))
    waits = run(loop)
    for request in asked:
        end = taken(request)[-1]
        ended += isinstance(end, Speech)
    assert ended > 2800 and waits < 3000
    at_rest(loop)
