"""Synthetic checkpoints: the inventory is the published one, the files are the published layout, the bytes repeat."""

import json
import math
import time

import numpy as np
import pytest
import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.codec import Codec
from octavo.runtime.errors import CheckpointError
from octavo.tools.inventory import AUDIO_HEAD, AUDIO_TABLE, CODEC, CODECS, MODELS, TEXT_HEAD, TEXT_TABLE, inventory
from octavo.tools.layout import header
from octavo.tools.make_checkpoint import main, make_checkpoint, values


@pytest.fixture(scope="module")
def checkpoint(tiny_dir):
    return Checkpoint.open(tiny_dir)


def published():
    return {spec.name: spec for spec in inventory(MODELS["4b"], CODECS["real"])}


def test_published_widths_give_the_published_counts():
    sizes = {name: spec.numel for name, spec in published().items()}
    assert len(sizes) == 929
    assert sum(sizes.values()) == 4_654_850_537
    assert sum(n for name, n in sizes.items() if name.startswith("body.")) == 3_633_511_936
    assert sum(name.startswith("body.") for name in sizes) + 1 == 398  # and the text table
    assert sizes[TEXT_TABLE] == 388_956_160 and sizes[AUDIO_TABLE] == 21_012_480
    codec = {name: n for name, n in sizes.items() if name.startswith(CODEC)}
    assert (len(codec), sum(codec.values())) == (528, 201_401_321)
    tied = sum(n for name, n in sizes.items() if name.startswith("tied.head."))
    assert tied == 409_968_640
    assert 2 * (sum(sizes.values()) - tied) == 8_489_763_794  # total_size of the published index, to the byte


def test_codec_names_and_shapes_are_the_published_ones(shared):
    want = json.loads((shared / "spec" / "codec_tensors.json").read_text())
    assert {name: list(spec.shape) for name, spec in published().items() if name.startswith(CODEC)} == want


def test_layout_on_disk(tiny_dir, checkpoint):
    assert {path.name for path in tiny_dir.iterdir()} == {
        "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
        "README.md",
    }  # fmt: skip
    index = json.loads((tiny_dir / "model.safetensors.index.json").read_text())
    assert set(checkpoint) - index["weight_map"].keys() == {TEXT_HEAD, AUDIO_HEAD}
    assert index["metadata"]["total_size"] == sum(checkpoint.info[name].nbytes for name in index["weight_map"])
    assert {info.dtype for info in checkpoint.info.values()} == {torch.bfloat16}
    assert "noise, not speech" in (tiny_dir / "README.md").read_text()
    text = checkpoint.config["text_config"]
    assert text["rope_parameters"]["rope_theta"] == 1000000 and "rope_theta" not in text
    assert checkpoint[TEXT_TABLE].shape == (text["vocab_size"], text["hidden_size"])
    assert checkpoint[AUDIO_TABLE].shape == (8 * 1026, text["hidden_size"])


def test_safetensors_library_reads_the_same(tiny_dir, checkpoint):
    from safetensors.torch import load_file

    theirs = load_file(tiny_dir / "model.safetensors")
    assert theirs.keys() == set(checkpoint)
    assert all(torch.equal(theirs[name], checkpoint[name]) for name in theirs)


def test_values_are_sane(checkpoint):
    for name, tensor in checkpoint.items():
        x = tensor.float()
        assert x.isfinite().all(), name
        if name.endswith(".alpha"):
            assert 0.299 <= x.min() and x.max() <= 2.0, name
        elif name.endswith("proj.weight"):
            assert 0.9 < x.std() * math.sqrt(x.shape[1]) < 1.1, name
        elif "norm.weight" in name:
            assert 0.9 < x.mean() < 1.1, name
        elif name.endswith(".inited"):
            assert x.tolist() == [1.0]
    assert torch.equal(checkpoint[TEXT_HEAD], checkpoint[TEXT_TABLE])
    assert torch.equal(checkpoint[AUDIO_HEAD], checkpoint[AUDIO_TABLE])
    names = [n for n in checkpoint if n.endswith("q_proj.weight") and n.startswith("body.")]
    assert len({checkpoint[n].float().sum().item() for n in names}) == 4, "layers must differ"


def test_same_seed_same_bytes_other_seed_other_bytes(tiny_dir, tmp_path):
    again = make_checkpoint(tmp_path / "again", size="tiny", seed=0)
    other = make_checkpoint(tmp_path / "other", size="tiny", seed=1)
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in tiny_dir.iterdir())
    theirs, ours = Checkpoint.open(other), Checkpoint.open(again)
    assert not any(torch.equal(theirs[name], ours[name]) for name in ours if not name.endswith(".inited"))


@pytest.mark.parametrize("offset", [0, 5, 10])
@pytest.mark.parametrize("numel", [1, 7, 10, 11, 20, 47, 100])
def test_long_tensors_are_cut_from_the_block_without_a_gap(offset, numel, monkeypatch):
    block = torch.arange(11.0)
    monkeypatch.setattr("zlib.crc32", lambda _: offset)
    [spec] = [s for s in inventory(MODELS["4b"], CODECS["tiny"]) if s.name == "body.norm.weight"]
    spec = type(spec)(spec.name, (numel,), mean=0.5, std=2.0)
    got = b"".join(bytes(piece) for piece in values(spec, 0, block, torch.float32))
    want = 0.5 + 2 * ((offset + np.arange(numel)) % 11)
    assert np.frombuffer(got, dtype="<f4").tolist() == want.tolist()


def test_rows_of_the_largest_matrices_do_not_repeat():
    from octavo.tools.make_checkpoint import _BLOCK

    assert all(_BLOCK % divisor for divisor in range(2, math.isqrt(_BLOCK) + 1)), "prime"
    assert all(spec.shape[0] < _BLOCK and math.prod(spec.shape[1:]) % _BLOCK for spec in published().values())


def test_shards_without_index(tmp_path, checkpoint):
    out = make_checkpoint(tmp_path / "out", shards=3, index=False)
    assert sorted(path.name for path in out.glob("*.safetensors*")) == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    sharded = Checkpoint.open(out)
    assert sharded.keys() == checkpoint.keys() and all(torch.equal(sharded[n], checkpoint[n]) for n in sharded)
    sizes = [path.stat().st_size for path in out.glob("*.safetensors")]
    assert max(sizes) < 2 * min(sizes)


def test_index_names_every_shard(tmp_path):
    out = make_checkpoint(tmp_path / "out", shards=4)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    assert len(Checkpoint.open(out)) == len(index["weight_map"]) + 2


def test_without_tied_copies(tmp_path):
    assert not any(
        name.startswith("tied.head.") for name in Checkpoint.open(make_checkpoint(tmp_path / "o", tied_copies=False))
    )


@pytest.mark.parametrize("tied_copies", [True, False])
def test_untied_audio_has_a_head_of_its_own(tmp_path, tied_copies):
    out = make_checkpoint(tmp_path / "out", untied_audio=True, tied_copies=tied_copies)
    checkpoint = Checkpoint.open(out)
    assert checkpoint.config["audio_encoder_config"]["tie_word_embeddings"] is False
    assert not torch.equal(checkpoint[AUDIO_HEAD], checkpoint[AUDIO_TABLE])
    assert AUDIO_HEAD in json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert (TEXT_HEAD in checkpoint) is tied_copies


def test_dimensions_and_dtype_can_be_overridden(tmp_path):
    out = tmp_path / "out"
    arguments = "--layers 1 --hidden 96 --heads 2 --kv-heads 2 --ffn 160 --codec-decoder 32 --codec-hubert-layers 1"
    assert main([str(out), "--dtype", "fp32", "--no-index", *arguments.split()]) == 0
    checkpoint = Checkpoint.open(out)
    assert checkpoint["body.layers.0.mlp.up_proj.weight"].shape == (160, 96)
    assert checkpoint[CODEC + "acoustic_decoder.conv1.weight"].shape == (32, 16, 7)
    assert "body.layers.1.mlp.up_proj.weight" not in checkpoint
    assert checkpoint["body.norm.weight"].dtype == torch.float32
    assert checkpoint.config["text_config"]["num_hidden_layers"] == 1


def test_a_tokenizer_of_ones_own(tmp_path, tiny_dir):
    out = make_checkpoint(tmp_path / "out", tokenizer=tiny_dir / "tokenizer.json")
    assert Checkpoint.open(out)[TEXT_TABLE].shape[0] % 64 == 0


@pytest.mark.parametrize(
    "overrides",
    [{"size": "huge"}, {"codec": "huge"}, {"layers": 0}, {"kv_heads": 3}, {"codec_decoder": 48}, {"dtype": "fp8"},
     {"seed": -1}, {"shards": 0}, {"shards": 10_000}, {"vocab": 64}, {"tokenizer": "/nowhere/tokenizer.json"}],
    ids=str,
)  # fmt: skip
def test_impossible_requests_leave_nothing(tmp_path, overrides):
    with pytest.raises(CheckpointError, match=r"\.$"):
        make_checkpoint(tmp_path / "out", **overrides)
    assert not list(tmp_path.iterdir())


def test_unknown_dimension_is_a_bug_of_the_caller(tmp_path):
    with pytest.raises(TypeError):
        make_checkpoint(tmp_path / "out", colour=3)


def test_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert main([str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_broken_off_in_the_middle_leaves_nothing(tmp_path, monkeypatch, failure):
    def two_pieces(*_):
        yield b"some bytes"
        raise failure

    monkeypatch.setattr("octavo.tools.make_checkpoint.values", two_pieces)
    with pytest.raises(CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt):
        make_checkpoint(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000_000})())
    with pytest.raises(CheckpointError, match="needs 9.3 GB"):
        make_checkpoint(tmp_path / "out", size="4b")
    assert not list(tmp_path.iterdir())


def test_header_is_aligned_and_contiguous():
    specs = inventory(MODELS["4b"], CODECS["real"])
    raw = header(specs, "bf16")
    assert len(raw) % 8 == 0 and int.from_bytes(raw[:8], "little") == len(raw) - 8
    entries = json.loads(raw[8:])
    assert entries.pop("__metadata__") == {"format": "pt"}
    assert max(entry["data_offsets"][1] for entry in entries.values()) == 2 * 4_654_850_537


def test_tiny_is_made_quickly(tmp_path):
    begin = time.process_time()
    make_checkpoint(tmp_path / "out")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("widths", CODECS)
def test_its_noise_is_as_loud_as_speech_and_does_not_clip(tmp_path, tiny_dir, widths):
    folder = tiny_dir if widths == "tiny" else make_checkpoint(tmp_path / "out", codec=widths)
    codec = Codec.load(Checkpoint.open(folder).weights(CODEC), torch.device("cpu"))
    pcm = codec.decode(np.random.default_rng(0).integers(0, 1024, (25, 8)))
    assert 0.05 < pcm.std() < 0.2 and abs(pcm.mean()) < 0.1 and np.abs(pcm).max() < 1


def test_its_encoder_hears_differences(tiny_dir):
    codec = Codec.load(Checkpoint.open(tiny_dir).weights(CODEC), torch.device("cpu"))
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    codes = codec.encode(0.1 * noise * np.sin(np.arange(48_000) / 3000))
    assert min(len(np.unique(codes[:, q])) for q in range(8)) > 20  # of 50 frames
