"""What counts as a number in a request: Python's, and those that come out of arrays."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.errors import RequestError


@pytest.mark.parametrize("whole", [np.int8, np.int16, np.int64, np.uint8, np.uint64, int])
@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64, float])
def test_numpy_scalars_are_numbers(whole, real):
    given = SamplingParams(real(0.5), whole(7), real(0.25), whole(11), max_rows=np.int32(64))
    assert given == SamplingParams(0.5, 7, 0.25, 11, 64)
    assert [type(value) for value in dataclasses.astuple(given)] == [float, int, float, int, int]
    assert SamplingParams(temperature=whole(0)).greedy
    options = EngineConfig(max_batch=whole(3), kv_rows=np.int64(4096))
    assert options == EngineConfig(max_batch=3, kv_rows=4096) and type(options.num_pages) is int


def test_the_largest_seed_may_come_from_numpy():
    assert SamplingParams(seed=np.uint64(2**63 - 1)).seed == 2**63 - 1
    with pytest.raises(RequestError, match="seed"):
        SamplingParams(seed=np.uint64(2**63))


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "seed", "max_rows"])
@pytest.mark.parametrize(
    "value",
    [True, np.True_, float("nan"), np.float32("nan"), np.float64("inf"), -1, np.int8(-1), "1", 1j, np.array([1, 2]),
     np.array(1.0), Fraction(10**400)],
    ids=repr,
)  # fmt: skip
def test_what_is_no_number_or_out_of_range(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", ["top_k", "seed", "max_rows"])
@pytest.mark.parametrize("value", [20.0, np.float32(20)], ids=repr)
def test_whole_numbers_are_not_given_as_floats(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("value", [True, np.float64(8), "8", 0, np.int64(0)], ids=repr)
def test_engine_options(value):
    with pytest.raises(RequestError, match="max_batch"):
        EngineConfig(max_batch=value)
