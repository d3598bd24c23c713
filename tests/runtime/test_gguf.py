"""The GGUF container: read back as written, and every kind of damage answered by a sentence, never by memory."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime import CheckpointError
from octavo.runtime.gguf import GGUFTensor, read_gguf

from .gguf_files import container, string, value

KEYS = {
    "general.architecture": "test",
    "empty": "",
    "umlaut": "Größe",
    "number": 7,
    "negative": ("i32", -7),
    "large": ("u64", 2**63),
    "real": ("f32", 1e-6),
    "yes": ("bool", True),
    "words": ["a", "", "böse"],
    "none": ("i32", []),
    "bytes": ("u8", [1, 2, 255]),
}
TENSORS = [
    ("matrix", (2, 64), "Q8_0", bytes(range(136))),
    ("cube", (1, 3, 2), "F16", bytes(12)),
    ("scalar", (), "F32", bytes(4)),
    ("nothing", (0, 4), "F32", b""),
    ("row", (5,), "BF16", bytes(10)),
]


@pytest.fixture
def file(tmp_path):
    return container(tmp_path / "a.gguf", KEYS, TENSORS)


def test_keys_and_tensors_are_read_as_written(file):
    found = read_gguf(file)
    metadata = found.metadata
    assert list(metadata) == list(KEYS)
    assert [metadata[key] for key in ("umlaut", "number", "negative", "large", "real", "yes", "words")] == [
        "Größe", 7, -7, 2**63, 1e-6, True, ["a", "", "böse"],
    ]  # fmt: skip
    assert metadata["bytes"].tolist() == [1, 2, 255] and metadata["bytes"].dtype == np.uint8
    assert metadata["none"].tolist() == [] and metadata["empty"] == "" and metadata.get("absent") is None
    assert {name: (t.shape, t.type, t.nbytes) for name, t in found.tensors.items()} == {
        name: (shape, kind, len(data)) for name, shape, kind, data in TENSORS
    }
    raw = file.read_bytes()
    for name, _, _, data in TENSORS:
        begin = found.tensors[name].begin
        assert raw[begin : begin + len(data)] == data and begin % 32 == 0


def test_a_string_can_be_found_in_the_file(file):
    begin, length = read_gguf(file).metadata.span("umlaut")
    assert file.read_bytes()[begin : begin + length].decode() == "Größe"


def test_what_the_gguf_package_writes(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "test")
    writer.add_float32("eps", 1e-6)
    writer.add_array("words", ["x", "y"])
    writer.add_custom_alignment(64)
    data = np.arange(64, dtype=np.float32).reshape(1, 2, 32)
    writer.add_tensor("plain", data[0, :, :3].copy())
    writer.add_tensor("blocks", gguf.quants.quantize(data[0], gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "a.gguf")
    assert found.metadata["eps"] == 1e-6 and found.metadata["words"] == ["x", "y"]
    want = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert found.tensors["plain"] == GGUFTensor("plain", (2, 3), "F32", want["plain"].data_offset, 24)
    assert found.tensors["blocks"] == GGUFTensor("blocks", (2, 32), "Q8_0", want["blocks"].data_offset, 68)


def test_every_truncation_is_noticed(file, tmp_path):
    raw, cut = file.read_bytes(), tmp_path / "cut.gguf"
    last = read_gguf(file).tensors["row"]
    for length in range(0, last.begin + last.nbytes, 5):
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf .*\.$"):
            read_gguf(cut)


@settings(max_examples=150)
@given(data=st.data())
def test_damage_never_escapes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.gguf"
    raw = bytearray(container(path, KEYS, TENSORS).read_bytes())
    head = read_gguf(path).data
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        found = read_gguf(path)
        for key in found.metadata:
            found.metadata.get(key)
    except CheckpointError as error:
        assert str(error).endswith(".")
    else:
        assert all(t.begin + t.nbytes <= len(raw) for t in found.tensors.values())


def head(version=3, tensors=0, keys=0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def record(name="t", sizes=(4,), kind=0, offset=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def key(name, raw) -> bytes:
    return string(name) + raw


ALIGN = "general.alignment"
HUGE = 2**62
BAD = {
    "another format": (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
    "empty": (b"", "too short"),
    "version 1": (head(1), "version 1"),
    "version 4": (head(4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many keys": (head(keys=HUGE), f"announces {HUGE} keys"),
    "too many tensors": (head(tensors=HUGE), f"announces {HUGE} tensors"),
    "a name without end": (head(keys=1) + struct.pack("<Q", HUGE) + bytes(40), f"a name of {HUGE} bytes"),
    "a string without end": (head(keys=1) + key("k", struct.pack("<IQ", 8, HUGE)), "reaches beyond"),
    "2^64 - 1 bytes": (head(keys=1) + key("k", struct.pack("<IQ", 8, 2**64 - 1)), "reaches beyond"),
    "an array without end": (head(keys=1) + key("k", struct.pack("<IIQ", 9, 4, HUGE)), "elements of k"),
    "strings without end": (head(keys=1) + key("k", struct.pack("<IIQ", 9, 8, HUGE)), "strings of k"),
    "a string in an array": (head(keys=1) + key("k", struct.pack("<IIQQ", 9, 8, 1, HUGE)), "reaches beyond"),
    "an array of arrays": (head(keys=1) + key("k", struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
    "an unknown type": (head(keys=1) + key("k", struct.pack("<II", 13, 0)), "unknown type 13"),
    "a key twice": (head(keys=2) + key("k", value(1)) * 2, "key k twice"),
    "a name that is no text": (head(keys=1) + struct.pack("<Q", 2) + b"\xff\xfe" + value(1), "not UTF-8"),
    "no alignment": (head(keys=1) + key(ALIGN, value(0)), "alignment is 0"),
    "an odd alignment": (head(keys=1) + key(ALIGN, value(48)), "alignment is 48"),
    "an alignment in words": (head(keys=1) + key(ALIGN, value("x")), "alignment is 'x'"),
    "a tensor twice": (head(tensors=2) + record() + record(offset=32) + bytes(99), "tensor t twice"),
    "five dimensions": (head(tensors=1) + record(sizes=(1,) * 5) + bytes(99), "5 dimensions"),
    "an unknown block type": (head(tensors=1) + record(kind=16, sizes=(256,)) + bytes(99), "ggml's type 16"),
    "a row of half blocks": (head(tensors=1) + record(kind=8, sizes=(48,)) + bytes(99), "rows of 48 weights"),
    "misaligned": (head(tensors=1) + record(offset=8) + bytes(99), "not on a multiple of 32"),
    "overlapping": (head(tensors=2) + record() + record("u") + bytes(99), "u overlaps"),
    "beyond the end": (head(tensors=1) + record(sizes=(2**40, 2**40)) + bytes(99), "truncated"),
}


@pytest.mark.parametrize("raw, says", BAD.values(), ids=BAD.keys())
def test_damaged_files_get_a_sentence_and_no_memory(tmp_path, raw, says):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=says) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).endswith(".") and str(path) in str(caught.value)


def test_text_that_is_none_is_noticed_when_it_is_read(tmp_path):
    (tmp_path / "a.gguf").write_bytes(head(keys=1) + key("k", struct.pack("<IQ", 8, 2) + b"\xff\xfe"))
    metadata = read_gguf(tmp_path / "a.gguf").metadata
    with pytest.raises(CheckpointError, match="k is not UTF-8"):
        metadata["k"]


def test_values_of_another_kind_are_refused(file):
    metadata = read_gguf(file).metadata
    for call, bad in [("scalar", "words"), ("scalar", "bytes"), ("strings", "bytes"), ("strings", "umlaut"),
                      ("naturals", "words"), ("naturals", "number")]:  # fmt: skip
        with pytest.raises(CheckpointError, match=f"the key {bad} has"):
            getattr(metadata, call)(bad)
    assert metadata.scalar("absent", 3) == 3 and metadata.strings("absent") is metadata.naturals("absent") is None


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
