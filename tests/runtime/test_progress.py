"""What the host keeps of the utterances: pushes, ends, and the guard against runaways."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.runtime.guard import LOOK_EVERY, LOOP_ROWS
from octavo.runtime.progress import LENGTH, LOOP, SILENCE, STOP, Progress

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


@pytest.mark.parametrize("period", [1, 2, 5, 8])
def test_repeated_rows_of_any_short_period_are_a_loop(period):
    random, progress, ended = np.random.default_rng(0), started(), []
    for number in range(LOOP_ROWS + period + 2 * LOOK_EVERY):
        rows = noise(random)
        rows[0] = number % period
        assert not ended
        ended = add(progress, rows)
        if ended:
            break
    assert ended == [(2, LOOP)] and number >= LOOP_ROWS


def test_rows_that_almost_repeat_are_no_loop():
    progress = started()
    for number in range(300):
        rows = np.ones((2, 8), np.int64)
        rows[0] = number % 9  # a period too long to be called one
        rows[1, 7] = 0 if number % 40 else 1  # one code in forty rows differs
        rows[1, 0] = number % 50
        assert not add(progress, rows)


def test_a_loop_is_nobodys_business_where_nothing_is_watched():
    progress = started(allowance=None)
    assert not any(add(progress, np.ones((2, 8), np.int64)) for _ in range(300))


def test_a_stuck_first_codebook_is_a_loop():
    random, progress = np.random.default_rng(0), started()
    for number in range(100 + 2 * LOOK_EVERY):
        rows = noise(random)
        rows[1, 0] = 5
        ended = add(progress, rows)
        assert not ended or number >= 99
        if ended:
            break
    assert ended == [(0, LOOP)]


def test_a_loop_seen_while_a_row_is_under_way_ends_with_that_row():
    progress = started()
    progress.launch(SLOTS)
    for number in range(200):
        ended = add(progress, np.ones((2, 8), np.int64) * [[number], [7]])
        assert not ended
        if progress._limit[0] < 400:
            break
    assert progress.read(SLOTS, np.full((2, 8), 7, np.int16), np.zeros(2)) == [(0, LOOP)]
    assert progress.rows(0) == number + 2 < 100


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
    assert progress.due(SLOTS[:1]) == [] and progress.spoken(2).shape == (193, 8)


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
    assert progress.spoken(0).tolist() == [list(range(8)), [1, 2, 3, 4, 5, 6, 7, 0]]
