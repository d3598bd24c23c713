import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.runtime.delay import BOC, EOC, DelayState, delay, undelay


def codes_of(frames, codebooks):
    return hnp.arrays(np.int16, st.tuples(frames, codebooks), elements=st.integers(0, 1023))


def test_three_frames_give_the_published_table():
    """model-v3.md 5.4: code of frame t, codebook c is written 10 * t + c."""
    codes = 10 * np.arange(3)[:, None] + np.arange(8)
    table = """
        00  B  B  B  B  B  B  B
        10 01  B  B  B  B  B  B
        20 11 02  B  B  B  B  B
         E 21 12 03  B  B  B  B
         E  E 22 13 04  B  B  B
         E  E  E 23 14 05  B  B
         E  E  E  E 24 15 06  B
         E  E  E  E  E 25 16 07
         E  E  E  E  E  E 26 17
         E  E  E  E  E  E  E 27"""
    want = [[{"B": BOC, "E": EOC}.get(cell) or int(cell) for cell in line.split()] for line in table.split("\n")[1:]]
    assert delay(codes).tolist() == want


@given(codes_of(st.integers(1, 40), st.integers(1, 9)))
def test_undelay_takes_delay_back(codes):
    rows = delay(codes)
    assert rows.shape == (len(codes) + codes.shape[1] - 1, codes.shape[1])
    assert rows.dtype == np.int64
    assert not (rows[:, 0] == BOC).any()
    assert not (rows[:, -1] == EOC).any()
    assert (rows >= BOC).sum() == codes.shape[1] * (codes.shape[1] - 1)
    np.testing.assert_array_equal(undelay(rows), codes)


def test_undelay_keeps_the_dtype_and_needs_n_rows():
    rows = np.arange(64, dtype=np.int16).reshape(8, 8)
    assert undelay(rows).dtype == np.int16
    assert undelay(rows).tolist() == [[9 * c for c in range(8)]]
    assert undelay(rows[:7]).shape == (0, 8)
    assert undelay(rows[:0]).shape == (0, 8)
    assert delay(np.empty((0, 8), np.int16)).shape == (0, 8)


def run(sample, max_rows=2048):
    """Rows of one request; `sample(s)` gives the eight codes that row s draws."""
    state, rows = DelayState(), []
    while not state.done and len(rows) < max_rows:
        rows.append(state.step(sample(len(rows))))
    return np.array(rows).reshape(-1, 8), state


def ends_at(*eoc_rows):
    return lambda s: [EOC if s in eoc_rows else s % 1000, *[(s + c) % 1000 for c in range(1, 8)]]


@pytest.mark.parametrize("eoc, length", [(8, 15), (9, 16), (50, 57), (592, 599)])
def test_an_eoc_in_row_s_gives_s_frames(eoc, length):
    rows, state = run(ends_at(eoc))
    assert len(rows) == length
    assert state.done and state.left == 0
    codes = undelay(rows)
    assert codes.shape == (eoc, 8)
    assert (codes < BOC).all()
    assert codes[-1].tolist() == [(eoc - 1 + 2 * c if c else eoc - 1) % 1000 for c in range(8)]


@pytest.mark.parametrize("early", [0, 3, 7])
def test_an_eoc_in_the_ramp_in_is_not_looked_at(early):
    rows, state = run(ends_at(early), max_rows=40)
    assert len(rows) == 40 and not state.done and state.left is None
    assert rows[early, 0] == EOC  # kept as it was sampled


def test_a_second_eoc_does_not_prolong_the_ramp_out():
    assert len(run(ends_at(20, 21, 23))[0]) == 27


def test_the_ramp_in_is_forced_and_nothing_else():
    rows, _ = run(lambda s: [100 + s] * 8, max_rows=10)
    for s, row in enumerate(rows.tolist()):
        assert row == [100 + s] * min(s + 1, 8) + [BOC] * max(0, 7 - s)


def test_the_ramp_out_is_sampled_freely():
    rows, _ = run(lambda s: [EOC if s == 9 else 5] + [6] * 7)
    assert rows[10:].tolist() == [[5] + [6] * 7] * 6


def test_attributes_row_by_row():
    state, seen = DelayState(), []
    for s in range(15):
        state.step([EOC if s == 8 else 0] * 8)
        seen.append((state.delay, state.left, state.done))
    assert seen[:8] == [(s + 1, None, False) for s in range(8)]
    assert seen[8:] == [(8, left, left == 0) for left in (6, 5, 4, 3, 2, 1, 0)]


def test_a_length_stop_in_the_ramp_in_is_empty():
    rows, _ = run(ends_at(), max_rows=7)
    assert undelay(rows).shape == (0, 8)
    assert undelay(run(ends_at(), max_rows=8)[0]).shape == (1, 8)


@given(codes_of(st.integers(8, 40), st.just(8)))
def test_the_state_machine_reproduces_a_delayed_utterance(codes):
    want = delay(codes)
    rows, _ = run(lambda s: want[s].tolist())
    np.testing.assert_array_equal(rows, want)
