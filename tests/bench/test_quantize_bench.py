"""What quantizing costs is measured around the command itself, and the file is gone afterwards."""

from __future__ import annotations

import pytest

from octavo.bench.quantize import quantizing


def test_a_format_is_made_measured_and_removed(tiny_dir):
    before = sorted(tiny_dir.parent.iterdir())
    size, time, memory = quantizing(tiny_dir, "int8", gate=False)
    weights = sum(file.stat().st_size for file in tiny_dir.glob("*.safetensors")) / 1e9
    assert 0.3 * weights < size.value < weights and size.asked is None
    assert time.value > 0 and time.timings["octavo"].median == pytest.approx(time.value * 60e3)
    assert memory.value * 1e9 > size.value
    assert sorted(tiny_dir.parent.iterdir()) == before
