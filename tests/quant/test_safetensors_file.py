"""Safetensors files written front to back: what other readers find in them."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from octavo.quant.safetensors_file import RESERVED, Entry, SafetensorsWriter, in_order, patch
from octavo.runtime.shards import read_header

TENSORS = {
    "odd": torch.arange(3, dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "matrix": torch.arange(8.0).view(2, 4),
    "scalar": torch.tensor(7.0),
    "codes": torch.arange(16, dtype=torch.int8).view(4, 4),
    "empty": torch.empty(0, 4, dtype=torch.float16),
    "strided": torch.arange(12, dtype=torch.int32).view(3, 4).t(),
    "eight": torch.tensor([1.0, -2.0, 448.0]).to(torch.float8_e4m3fn),
}


@pytest.fixture
def written(tmp_path):
    entries = in_order(Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items())
    with SafetensorsWriter(tmp_path / "a.safetensors", entries) as file:
        while (name := file.next) is not None:
            file.write(name, TENSORS[name])
        return tmp_path / "a.safetensors", file.finish(), file.nbytes


def test_every_value_comes_back_aligned(written):
    path, digest, nbytes = written
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.float())
    regions, _ = read_header(path)
    assert all(region.begin % region.dtype.itemsize == 0 for region in regions.values())
    begin = min(region.begin for region in regions.values())
    assert hashlib.sha256(path.read_bytes()[begin:]).hexdigest() == digest
    assert path.stat().st_size == nbytes


@pytest.mark.parametrize("said", [{}, {"a": 'quoted " and \\ and ü'}, {"long": "x" * (RESERVED - 20)}], ids=len)
def test_provenance_is_patched_in_place(written, said):
    path, _, nbytes = written
    before, _ = read_header(path)
    for stored in ({"earlier": "and longer" * 40}, said):
        patch(path, stored)
    assert read_header(path)[0] == before and path.stat().st_size == nbytes
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt" and json.loads(file.metadata()["octavo"]) == said


def test_what_was_announced_is_written(written, tmp_path):
    entries = [Entry("a", torch.float32, (2,)), Entry("b", torch.float32, (2,))]
    for number, (name, tensor) in enumerate(
        [("b", torch.zeros(2)), ("a", torch.zeros(3)), ("a", torch.zeros(2).half())]
    ):
        with SafetensorsWriter(tmp_path / str(number), entries) as file, pytest.raises(AssertionError):
            file.write(name, tensor)
    with SafetensorsWriter(tmp_path / "short", entries) as file, pytest.raises(AssertionError, match="b"):
        file.write("a", torch.zeros(2))
        file.finish()
