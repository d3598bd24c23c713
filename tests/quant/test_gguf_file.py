"""Writing GGUF files: what other readers find in them."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo.quant.gguf_file import PROVENANCE_BYTES, GGUFWriter, patch, tensor_bytes
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.gguf import PROVENANCE, read_gguf
from octavo.runtime.gguf_higgs import open_higgs

LONG = "tied.embedding.modality_embeddings.0.model." + "x" * 40
KEYS = {"general.file_type": 7, "whole": np.int64(-5), "real": 1e-6, "yes": True, "words": ["a", "ö"],
        "bytes": np.arange(5, dtype=np.uint8), "text": "ü"}  # fmt: skip
TENSORS = [
    ("row", (5,), "F32"),
    ("matrix", (3, 64), "Q8_0"),
    (LONG, (), "F32"),
    ("empty", (0, 4), "F16"),
    ("cube", (1, 3, 7), "BF16"),
]
RNG = np.random.default_rng(0)
DATA = {name: RNG.integers(0, 256, tensor_bytes(name, shape, kind), np.uint8) for name, shape, kind in TENSORS}


def write(path, keys=KEYS, files=None) -> str:
    with GGUFWriter(path, keys, TENSORS, files) as writer:
        for name, data in DATA.items():
            writer.write(name, data)
        return writer.finish()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    digest = write(path)
    found = read_gguf(path)
    raw, metadata = path.read_bytes(), found.metadata
    assert [metadata[key] for key in ("general.file_type", "whole", "real", "yes", "words", "text")] == [
        7, -5, 1e-6, True, ["a", "ö"], "ü",
    ]  # fmt: skip
    assert metadata["bytes"].tolist() == list(range(5)) and metadata["bytes"].dtype == np.uint8
    assert list(found.tensors) == ["row", "matrix", "_audiocpp.2", "empty", "cube"]
    for (name, shape, kind), tensor in zip(TENSORS, found.tensors.values(), strict=True):
        assert (tensor.shape, tensor.type) == (shape or (1,), kind)
        assert raw[tensor.begin : tensor.begin + tensor.nbytes] == DATA[name].tobytes()
    assert metadata["audiocpp.tensor_names"] == [name for name, _, _ in TENSORS]
    assert metadata["audiocpp.tensor_ranks"].tolist() == [1, 2, 0, 2, 3]
    assert metadata["audiocpp.tensor_shapes"].tolist() == [5, 3, 64, 0, 4, 1, 3, 7]
    assert (metadata["audiocpp.tensor_ranks"].dtype, metadata["audiocpp.tensor_shapes"].dtype) == (np.int32, np.int64)
    assert digest == hashlib.sha256(raw[found.data :]).hexdigest()
    with GGUFWriter(tmp_path / "b.gguf", KEYS, TENSORS) as writer:
        assert len(raw) == found.size == writer.nbytes


def test_the_gguf_package_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    write(path, files={"config.json": b"{}", "tokenizer.json": "ä".encode()})
    reader = gguf.GGUFReader(path)
    assert [(t.name, t.tensor_type.name) for t in reader.tensors] == [
        ("row", "F32"), ("matrix", "Q8_0"), ("_audiocpp.2", "F32"), ("empty", "F16"), ("cube", "BF16"),
    ]  # fmt: skip
    for tensor, data in zip(reader.tensors, DATA.values(), strict=True):
        assert tensor.data.tobytes() == data.tobytes()
    want = read_gguf(path).metadata
    got = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert got.keys() == want.keys()
    for key, value in got.items():
        stored = want[key]
        assert value == pytest.approx(stored.tolist() if isinstance(stored, np.ndarray) else stored)


def test_the_package_specification_of_audiocpp(tmp_path):
    path = tmp_path / "a.gguf"
    write(path, files={"config.json": b"{}", "tokenizer.json": b"[]"})
    metadata = read_gguf(path).metadata
    assert (metadata["audiocpp.model_spec.version"], metadata["audiocpp.model_spec.family"]) == (1, "higgs_audio_tts")
    (source,) = json.loads(metadata["audiocpp.model_spec.json"])["sources"]
    assert source["format"] == "gguf"
    # audio.cpp opens every file that is named: those that are not embedded must not be
    assert source["files"] == {"config": "model:config.json", "tokenizer_json": "model:tokenizer.json"}


def test_a_whole_checkpoint(tmp_path, tiny_dir):
    """With its real names: more than half of the codec's are too long for ggml."""
    tensors = load_file(tiny_dir / "model.safetensors")
    kinds = {torch.bfloat16: "BF16"}
    files = {name: (tiny_dir / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    path = tmp_path / "a.gguf"
    with GGUFWriter(path, {}, [(n, tuple(t.shape), kinds[t.dtype]) for n, t in tensors.items()], files) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.flatten().view(torch.uint8).numpy())
        writer.finish()
    assert max(len(name) for name in read_gguf(path).tensors) < 64
    assert open_higgs(path).tokenizer() == files["tokenizer.json"]
    checkpoint = Checkpoint.open(path)
    assert set(checkpoint) == set(tensors) and checkpoint.config == json.loads(files["config.json"])
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor)


def test_the_origin_is_told_later_and_moves_nothing(tmp_path):
    path = tmp_path / "a.gguf"
    write(path)
    before = read_gguf(path)
    assert json.loads(before.metadata[PROVENANCE]) == {}
    for said in ({"tool": "a long name"}, {"Wörter": 1}):
        patch(path, said)
        after = read_gguf(path)
        assert json.loads(after.metadata[PROVENANCE]) == said
        assert (before.data, before.size, before.tensors) == (after.data, after.size, after.tensors)
    with pytest.raises(ValueError, match="store less"):
        patch(path, {"scores": "x" * PROVENANCE_BYTES})
    assert json.loads(read_gguf(path).metadata[PROVENANCE]) == {"Wörter": 1}


def test_bytes_that_do_not_belong_are_our_bug(tmp_path):
    for name, data, says in (("matrix", DATA["matrix"], "row"), ("row", bytes(21), "21")):
        with GGUFWriter(tmp_path / f"{name}.gguf", KEYS, TENSORS) as writer:
            with pytest.raises(AssertionError, match=says):
                writer.write(name, data)
    with GGUFWriter(tmp_path / "short.gguf", KEYS, TENSORS) as writer:
        writer.write("row", DATA["row"])
        with pytest.raises(AssertionError, match="matrix is not written"):
            writer.finish()


UNFIT = {
    "half a block": (("t", (2, 48), "Q8_0"), "t has rows of 48 weights"),
    "an unknown type": (("t", (2, 32), "Q9"), "t cannot be stored as Q9"),
    "five dimensions": (("t", (1,) * 5, "F32"), "t has 5 dimensions"),
}


@pytest.mark.parametrize("tensor, says", UNFIT.values(), ids=UNFIT.keys())
def test_tensors_the_format_cannot_hold(tmp_path, tensor, says):
    with pytest.raises(ValueError, match=says):
        GGUFWriter(tmp_path / "a.gguf", {}, [tensor])
    assert not os.listdir(tmp_path)
