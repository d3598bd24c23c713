"""What the host keeps of the utterances: pushes, ends, and the guard against runaways."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.runtime.config import SamplingParams
from octavo.runtime.guard import LOOK_EVERY, LOOP_ROWS
from octavo.runtime.progress import LENGTH, LOOP, SILENCE, STOP, Progress
from octavo.runtime.prompt import Prompt
from octavo.runtime.scheduler import Sequence
from octavo.runtime.utterance import Utterance

SLOTS = np.array([2, 0])


def started(max_rows: int = 400, allowance: float | None = 3.0) -> Progress:
    progress = Progress(4, 1000, lookahead=10)
    for slot in SLOTS:
        progress.begin(slot, max_rows, allowance)
    return progress


def add(progress: Progress, rows: np.ndarray, done: tuple[int, int] = (0, 0), slots: np.ndarray = SLOTS) -> list:
    progress.launch(slots)
    return progress.read(slots, rows.astype(np.int16), np.array(done[: len(slots)]))


def noise(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 1024, (2, 8))


def rows_until_end(progress: Progress, row, slots: np.ndarray = SLOTS, most: int = 300) -> tuple[int, list]:
    """Adds row(0), row(1), ... ([2, 8]) until somebody ends: how many, and who."""
    for number in range(most):
        if ended := add(progress, row(number)[: len(slots)], slots=slots):
            return number + 1, ended
    return most, []


@pytest.mark.parametrize("period", [1, 2, 5, 8])
def test_repeated_rows_of_any_short_period_are_a_loop(period):
    random = np.random.default_rng(0)

    def row(number: int) -> np.ndarray:
        rows = noise(random)
        rows[0] = number % period
        return rows

    count, ended = rows_until_end(started(), row)
    assert ended == [(2, LOOP)] and LOOP_ROWS <= count <= LOOP_ROWS + 2 * LOOK_EVERY


@pytest.mark.parametrize("before", range(1, 18, 3))
def test_a_loop_ends_with_the_same_row_in_any_company(before):
    """Whenever the others had their rows, on which the time of the look hangs."""
    random, progress = np.random.default_rng(0), started()
    other, mine = SLOTS[:1], SLOTS[1:]
    for _ in range(before):
        add(progress, noise(random)[:1], slots=other)
    count, ended = rows_until_end(progress, lambda number: np.full((2, 8), number if number < 20 else 7), mine)
    assert (count, ended) == (96, [(0, LOOP)]), "three looks behind row 32, and one more"


def test_rows_that_almost_repeat_are_no_loop():
    def row(number: int) -> np.ndarray:
        rows = np.ones((2, 8), np.int64)
        rows[0] = number % 9  # a period too long to be called one
        rows[1, 7] = 0 if number % 40 else 1  # one code in forty rows differs
        rows[1, 0] = number % 50
        return rows

    assert rows_until_end(started(), row) == (300, [])


def test_a_loop_is_nobodys_business_where_nothing_is_watched():
    assert rows_until_end(started(allowance=None), lambda number: np.ones((2, 8), np.int64)) == (300, [])


def test_a_stuck_first_codebook_is_a_loop():
    random = np.random.default_rng(0)

    def row(number: int) -> np.ndarray:
        rows = noise(random)
        rows[1, 0] = 5
        return rows

    count, ended = rows_until_end(started(), row)
    assert ended == [(0, LOOP)] and 100 <= count <= 100 + 3 * LOOK_EVERY


def test_a_cut_while_a_row_is_under_way_ends_with_that_row():
    random, progress = np.random.default_rng(0), started()
    progress.launch(SLOTS)
    for _ in range(20):
        assert not add(progress, noise(random))
    assert not progress.cut(0, SILENCE)
    assert progress.read(SLOTS, noise(random).astype(np.int16), np.zeros(2)) == [(0, SILENCE)]
    assert progress.rows(0) == 21


def test_speech_and_pauses_pass_and_long_silence_is_seen():
    random, progress = np.random.default_rng(0), started()
    loud, quiet = (random.normal(0, size, 25 * 960).astype(np.float32) for size in (0.1, 1e-4))
    for second in (loud, quiet, quiet, quiet, loud, quiet, quiet, quiet):
        assert not progress.guards.add_pcm(2, second)
    assert progress.guards.add_pcm(2, quiet[:960])
    assert not progress.guards.add_pcm(0, np.concatenate([quiet] * 3))
    assert progress.guards.add_pcm(0, np.concatenate([quiet[: 2 * 960], loud[:960] * 1e-3]))


def test_pushes_grow_and_take_every_frame_once():
    progress, taken = started(), {2: [], 0: []}
    random = np.random.default_rng(0)
    for row in range(1, 201):
        add(progress, noise(random))
        for slot in progress.due(SLOTS):
            taken[slot].append((row, progress.take(slot)))
    assert taken[2] == taken[0]
    assert taken[2][:6] == [(18, 11), (19, 1), (21, 2), (24, 3), (29, 5), (37, 8)]
    assert all(row - 7 == sum(count for _, count in taken[2][: n + 1]) for n, (row, _) in enumerate(taken[2]))
    left, frames = progress.end(2)
    assert frames == 193 and left == frames - sum(count for _, count in taken[2]) + 10
    assert progress.due(SLOTS[:1]) == [] and progress.delayed(2).shape == (200, 8)


def test_ends_by_the_model_by_the_limit_and_by_silence():
    random, progress = np.random.default_rng(0), started(max_rows=20)
    for _ in range(12):
        assert add(progress, noise(random)) == []
    assert add(progress, noise(random), done=(1, 0)) == [(2, STOP)]
    term = progress.term[2]
    progress.end(2)
    assert progress.term[2] == term + 1
    only = SLOTS[1:]
    for _ in range(6):
        assert add(progress, noise(random)[:1], slots=only) == []
    assert progress.launch(only).tolist() == [0], "the last row is launched: no further one"
    assert progress.read(only, noise(random)[:1].astype(np.int16), np.zeros(1)) == [(0, LENGTH)]
    progress.begin(0, 400, 3.0)
    add(progress, noise(random)[:1], slots=only)
    assert progress.cut(0, SILENCE), "everything launched has been read"


def test_controls_drawn_out_of_turn_are_silent_codes():
    progress = started()
    for row in range(9):
        add(progress, np.full((2, 8), 1025 if row == 8 else row))
    utterance = Utterance(Sequence(Prompt([1], None, 1), SamplingParams()), None)
    utterance.delayed = progress.delayed(0)
    assert utterance.codes.tolist() == [list(range(8)), [1, 2, 3, 4, 5, 6, 7, 0]]
