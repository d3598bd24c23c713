"""The benchmark of quantized weights, at the smallest size: it runs, and slips turn it red."""

from __future__ import annotations

import pytest
import torch

from octavo.bench import quant
from octavo.bench.measure import CheckFailed
from octavo.bench.quant import FORMATS, METHODS, QuantizedSides, Rounded, added_error, products, row_bytes, share
from octavo.kernels.cpu_int8 import has_byte_products
from octavo.quant.formats.grouped import Grouped

pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this processor has no fast products of bytes")


@pytest.mark.parametrize("name", METHODS)
def test_steps_and_rows(name, tiny_dir, monkeypatch):
    monkeypatch.setattr(quant, "THREADS", 1)
    sides = QuantizedSides(tiny_dir, METHODS[name])
    step = sides.step("tiny", METHODS[name].step, 2)
    assert step.value > 0 and step.checks and step.timings.keys() == {"octavo", "baseline"}
    row = share(sides, name, METHODS[name].share, 2, read=1 << 20)
    assert row.value > 0 and row.checks and row.timings.keys() == {"octavo", "read"}
    hidden, q, kv, ffn, layers = 256, 256, 64, 1024, 4
    body = layers * hidden * (2 * q + 2 * kv + 3 * ffn)
    held = {"8-bit": body, "4-bit": body // 2 + body // 128 * 4}[name]
    scales = {"8-bit": layers * 8 * (q + 2 * kv + hidden + 2 * ffn + hidden), "4-bit": 0}[name]
    rest = 2 * hidden * 8208 + 2 * 160 * layers * 2 * kv
    assert row_bytes(sides.runner) == held + scales + rest


def test_a_slip_turns_the_check_red(tiny_dir, monkeypatch):
    """Scales of one layer's matrix off by two percent: no result comes out."""
    read = Rounded.matrix
    counts = iter(range(10_000))

    def wrong(self, name):
        matrix = read(self, name)
        second_time = name == "body.layers.1.mlp.down_proj.weight" and next(counts)
        return Grouped(matrix.codes, matrix.scale * 1.02, matrix.offset) if second_time else matrix

    monkeypatch.setattr(Rounded, "matrix", wrong)
    sides = QuantizedSides(tiny_dir, METHODS["8-bit"])
    with pytest.raises(CheckFailed, match="hidden states"):
        sides.step("tiny", 1.75, 1)


@pytest.mark.parametrize("name", METHODS)
def test_products(name):
    one, many = products(name, METHODS[name], 128, 256, 1, rows=(1, 5))
    assert one.checks and many.value > 0 and many.asked == 1 and many.case.endswith("128 x 256, 5 rows")


def test_no_product_without_equality(monkeypatch):
    monkeypatch.setattr(quant, "PRODUCT_LIMIT", 1e-4)
    monkeypatch.setattr(quant, "compare", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(CheckFailed, match="dequantized product"):
        products("8-bit", METHODS["8-bit"], 128, 256, 1, rows=(1,))


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_that_bytes_add(name):
    assert 0.004 < added_error(name, 512, 64).value < 0.011


def test_devices_other_than_the_cpu_are_measured_elsewhere():
    with pytest.raises(AssertionError):
        quant.results(1, torch.device("meta"))
