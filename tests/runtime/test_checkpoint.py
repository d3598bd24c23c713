"""Reading checkpoints: what is tolerated, what is refused with a sentence, and what it costs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from octavo.kernels.rms_norm import rms_norm
from octavo.runtime import CheckpointError, Engine
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.models import load_model
from octavo.runtime.shards import read_header
from octavo.tools.make_checkpoint import make_checkpoint

EMBEDDING = "tied.embedding.text_embedding.weight"
AUDIO_TABLE = "tied.embedding.modality_embeddings.0.embedding.weight"


@pytest.fixture
def folder(tiny_dir, tmp_path) -> Path:
    """A checkpoint of one's own, to damage."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "checkpoint"))


def load(folder: Path):
    return load_model(Checkpoint.open(folder), torch.device("cpu"), torch.float32, lambda done, total: None)


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_tensors_equal_what_the_safetensors_library_reads(tiny_dir):
    checkpoint, want = Checkpoint.open(tiny_dir), load_file(tiny_dir / "model.safetensors")
    assert set(checkpoint) == set(want)
    for name, tensor in want.items():
        assert torch.equal(checkpoint[name], tensor) and checkpoint[name].dtype == tensor.dtype
    checkpoint.release()
    assert torch.equal(checkpoint[EMBEDDING], want[EMBEDDING])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("tied_copies", [True, False])
def test_shards_index_and_tied_copies_in_any_combination(tmp_path, shards, index, tied_copies):
    options = {"shards": shards, "index": index, "tied_copies": tied_copies}
    model = load(make_checkpoint(tmp_path / "a", size="tiny", seed=5, **options))
    plain = load(make_checkpoint(tmp_path / "b", size="tiny", seed=5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_an_untied_audio_head_is_used(tmp_path, folder):
    model = load(make_checkpoint(tmp_path / "untied", size="tiny", seed=5, untied_audio=True))
    hidden = torch.randn(2, model.cfg.hidden_size)
    head = load_file(tmp_path / "untied" / "model.safetensors")["tied.head.modality_heads.0.weight"].float()
    normed = rms_norm(hidden, model.body.norm, model.cfg.rms_norm_eps)
    torch.testing.assert_close(model.logits(hidden), normed @ head.T, atol=1e-4, rtol=1e-4)
    assert not torch.equal(head, model.audio_table)
    edit_config(folder, lambda config: config["audio_encoder_config"].update(tie_word_embeddings=False))
    edit_tensors(folder, lambda tensors: tensors.pop("tied.head.modality_heads.0.weight"))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="tied.head.modality_heads.0.weight is missing"):
        load(folder)


ROPES = [
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 1e4}, 5e5),
    ({"rope_parameters": None, "rope_theta": 2e6}, 2e6),
    ({"rope_parameters": {"rope_type": "default"}, "rope_theta": None}, 1e6),
    ({"rope_parameters": {"rope_theta": None}, "rope_theta": 3e6}, 3e6),
    ({}, 1e6),
]


@pytest.mark.parametrize("given, theta", ROPES)
def test_rope_theta_rules(tiny_dir, given, theta):
    config = json.loads((tiny_dir / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta"):
        config["text_config"].pop(key, None)
    config["text_config"] |= given
    assert ModelConfig.from_checkpoint(config).rope_theta == theta


def drop(key, section=None):
    return lambda config: (config[section] if section else config).pop(key)


def put(key, value, section=None):
    return lambda config: (config[section] if section else config).update({key: value})


BAD_CONFIGS = {
    "another architecture": (put("model_type", "qwen3"), "model_type 'qwen3'"),
    "no model type": (drop("model_type"), "model_type None"),
    "no text_config": (drop("text_config"), "text_config"),
    "audio config a list": (put("audio_encoder_config", []), "audio_encoder_config"),
    "no hidden size": (drop("hidden_size", "text_config"), "hidden_size"),
    "negative layers": (put("num_hidden_layers", -1, "text_config"), "num_hidden_layers"),
    "text as number": (put("intermediate_size", "9728", "text_config"), "intermediate_size"),
    "recogniser": (put("encoder_type", "whisper", "audio_encoder_config"), "recogniser"),
    "rope type": (put("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "text_config"), "yarn"),
    "heads do not divide": (put("num_key_value_heads", 3, "text_config"), "evenly"),
    "four codebooks": (put("num_codebooks", 4, "audio_encoder_config"), "4 codebooks"),
    "wrong width": (put("hidden_size", 512, "text_config"), "do not belong together"),
    "more layers than weights": (put("num_hidden_layers", 6, "text_config"), "is missing"),
    "fewer layers than weights": (put("num_hidden_layers", 3, "text_config"), "left over"),
}


@pytest.mark.parametrize("change, says", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_configs(folder, change, says):
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(folder)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"a": ' + "[" * 100_000])
def test_config_that_is_not_json(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json"):
        load(folder)


def test_codec_extras_are_tolerated_and_nothing_else(folder):
    extra = "tied.embedding.modality_embeddings.0.model.something_new"
    edit_tensors(folder, lambda tensors: tensors.update({extra: torch.zeros(3)}))
    with Engine.load(folder, device="cpu"):
        pass
    edit_tensors(folder, lambda tensors: tensors.update({"body.layers.0.self_attn.q_proj.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="q_proj.bias is left over"):
        load(folder)


MISSING = ["body.norm.weight", EMBEDDING, AUDIO_TABLE, "body.layers.2.mlp.up_proj.weight",
           "tied.embedding.modality_embeddings.0.model.acoustic_decoder.conv1.weight",
           "tied.embedding.modality_embeddings.0.model.quantizer.quantizers.3.codebook.embed"]  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("how", ["missing", "misshapen"])
def test_missing_and_misshapen_tensors(folder, name, how):
    (folder / "model.safetensors.index.json").unlink()
    change = (lambda t: t.pop(name)) if how == "missing" else (lambda t: t.update({name: t[name][..., :-1]}))
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match=name.rpartition(".")[0].replace(".", r"\.")):
        Engine.load(folder, device="cpu")


def test_damaged_files(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[: len(whole) // 2], whole[:100], whole[:3], b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="no .safetensors file"):
        load(folder)
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        load(folder / "nowhere")


def test_whole_numbers_are_no_weights(folder):
    """A header whose dtype was flipped to another of the same size."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    entry = raw.index(b'"body.norm.weight":')
    at = raw.index(b'"BF16"', entry)
    path.write_bytes(raw[:at] + b'"I16" ' + raw[at + 6 :])
    with pytest.raises(CheckpointError, match="body.norm.weight does not hold floating-point"):
        load(folder)


def test_layers_beyond_all_bounds_are_refused_at_once(folder):
    edit_config(folder, put("num_hidden_layers", 10**9, "text_config"))
    with pytest.raises(CheckpointError, match="1000000000 layers"):
        load(folder)


def test_index_that_lies(tmp_path):
    folder = make_checkpoint(tmp_path / "sharded", size="tiny", seed=5, shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(
        json.dumps(index | {"weight_map": index["weight_map"] | {"made.up": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="made.up is named by"):
        load(folder)
    path.write_text(json.dumps({"weight_map": 7}))
    with pytest.raises(CheckpointError, match="weight_map"):
        load(folder)
    path.write_text(json.dumps(index))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002-of-00002.safetensors"):
        load(folder)


def header(tensors: object, data: bytes = b"") -> bytes:
    raw = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw + data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "U8", "X9"]) | json_values,
     "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
     "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values}
)  # fmt: skip
files = (
    st.binary(max_size=200)
    | st.builds(header, st.dictionaries(st.text(max_size=5), entries | json_values, max_size=3), st.binary(max_size=64))
    | st.builds(header, st.binary(max_size=60))
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files)
def test_any_bytes_are_read_exactly_or_refused_with_a_sentence(tmp_path, content):
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    try:
        tensors, _ = read_header(path)
    except CheckpointError as error:
        assert str(error).endswith(".") and "any.safetensors" in str(error)
    else:  # what is accepted covers the file's data exactly
        end = 8 + struct.unpack("<Q", content[:8])[0]
        assert end + sum(info.nbytes for info in tensors.values()) == len(content)


MEASURE = """
import resource, sys, torch
from octavo.kernels.cpu_linear import arrange
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.models import load_model
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
arrange(torch.zeros(64, 64, dtype=torch.bfloat16))  # torch's and oneDNN's own code
before = peak()
model = load_model(Checkpoint.open(sys.argv[1]), torch.device("cpu"), getattr(torch, sys.argv[2]), lambda d, t: None)
print(peak() - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to read the peak of memory")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_never_holds_the_weights_twice(tmp_path, dtype):
    """Peak host memory: the weights and 10 % (here of 24 layers; one layer's file pages may be resident)."""
    folder = make_checkpoint(tmp_path / "m", size="tiny", layers=24, hidden=768, ffn=3072, seed=1)
    out = subprocess.run([sys.executable, "-c", MEASURE, folder, dtype], capture_output=True, text=True, check=True)
    used, weights = map(int, out.stdout.split())
    assert weights > 350e6 and used < 1.1 * weights, (used, weights)
