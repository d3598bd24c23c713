"""Files of other converters: every tensor comes back under its upstream name, in its shape, with its values."""

from __future__ import annotations

import json
import os

import pytest
import torch

from octavo.quant.formats import blocks
from octavo.runtime import CheckpointError
from octavo.runtime.config import ModelConfig
from octavo.runtime.gguf import read_gguf
from octavo.runtime.gguf_higgs import HiggsGGUF, open_higgs
from octavo.runtime.gguf_names import full_shape, upstream_name
from octavo.runtime.gguf_tokenizer import rebuild_tokenizer
from octavo.runtime.tokenizer import Tokenizer
from octavo.tools.inventory import AUDIO_HEAD, CODEC, CODECS, MODELS, TEXT_HEAD, inventory

from . import gguf_files

TEXTS = [
    "Hello, world!",
    "<|emotion:elation|>Größe 1234  \n\n 你好 <|prosody:pause|> it's",
    "<|tts|><|text|>a<|audio|>",
]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(scope="module")
def upstream(tiny_dir) -> dict[str, torch.Tensor]:
    return gguf_files.checkpoint(tiny_dir)[0]


def values(model: HiggsGGUF, name: str) -> torch.Tensor:
    tensor = model.tensors[name]
    with open(tensor.file, "rb") as file:
        file.seek(tensor.stored.begin)
        raw = torch.frombuffer(bytearray(file.read(tensor.stored.nbytes)), dtype=torch.uint8)
    kind = tensor.stored.type
    if kind in DTYPES:
        return tensor.restore(raw.view(DTYPES[kind]))
    return tensor.restore(blocks.values(raw.view(tensor.stored.shape[0], -1), kind))


def check_model(model: HiggsGGUF, upstream, folder, without=()) -> None:
    """All tensors, to the precision of their types; the configuration; the ids of texts."""
    assert model.tensors.keys() == upstream.keys() - set(without)
    for name in model.tensors:
        got, want, kind = values(model, name), upstream[name].float(), model.tensors[name].stored.type
        assert model.tensors[name].shape == got.shape == want.shape, name
        if kind in DTYPES:
            assert torch.equal(got, want.to(DTYPES[kind])), name
        else:
            assert (got - want).abs().max() <= want.abs().max() / 127, name
    want = json.loads((folder / "config.json").read_bytes())
    assert ModelConfig.from_checkpoint(model.config) == ModelConfig.from_checkpoint(want)
    check_tokenizer(model.tokenizer(), (folder / "tokenizer.json").read_bytes())


def check_tokenizer(got: bytes, want: bytes) -> None:
    mine, published = (Tokenizer.parse(content, "x") for content in (got, want))
    assert mine._tokenizer.get_added_tokens_decoder().keys() == published._tokenizer.get_added_tokens_decoder().keys()
    for text in TEXTS:
        ids = [tokenizer._tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (mine, published)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("shapes, ranks", [(True, True), (False, True), (False, False)])
def test_audiocpp(tmp_path, tiny_dir, upstream, shapes, ranks):
    file = gguf_files.audiocpp(tmp_path / "a.gguf", tiny_dir, shapes=shapes, ranks=ranks, embed="contents")
    check_model(open_higgs(file), upstream, tiny_dir)


@pytest.mark.parametrize("embed", ["contents", "data", ""])
def test_side_files_inside_and_beside(tmp_path, tiny_dir, embed):
    file = gguf_files.audiocpp(tmp_path / "a.gguf", tiny_dir, embed=embed)
    if not embed:
        with pytest.raises(CheckpointError, match=r"no config\.json inside, and none lies beside"):
            open_higgs(file)
        for name in ("config.json", "tokenizer.json"):
            os.symlink(tiny_dir / name, tmp_path / name)
    model = open_higgs(file)
    assert model.config == json.loads((tiny_dir / "config.json").read_bytes())
    assert model.tokenizer() == (tiny_dir / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("drop_ones", [True, False])
def test_higgstts_cpp(tmp_path, tiny_dir, upstream, drop_ones):
    model = open_higgs(gguf_files.higgstts_cpp(tmp_path / "b.gguf", tiny_dir, drop_ones=drop_ones))
    check_model(model, upstream, tiny_dir)
    assert {tensor.stored.type for tensor in model.tensors.values()} == {"F32", "F16", "Q8_0"}


def test_an_untied_head_of_higgstts_cpp(tmp_path, tiny_dir):
    file = gguf_files.higgstts_cpp(tmp_path / "b.gguf", tiny_dir)
    head = open_higgs(file).tensors[AUDIO_HEAD].stored
    with open(file, "r+b") as changed:
        changed.seek(head.begin + 2)
        code = changed.read(1)[0]
        changed.seek(head.begin + 2)
        changed.write(bytes([code ^ 1]))
    assert open_higgs(file).config["audio_encoder_config"]["tie_word_embeddings"] is False


@pytest.mark.parametrize("opened", [0, 1])
def test_pair(tmp_path, tiny_dir, upstream, opened):
    files = gguf_files.pair(tmp_path, tiny_dir)
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")  # another download, not finished
    model = open_higgs(files[opened])
    assert [file.path for file in model.files] == [files[opened], files[1 - opened]]
    check_model(model, upstream, tiny_dir, without=[TEXT_HEAD])


def test_pair_of_the_current_folder(tmp_path, tiny_dir, monkeypatch):
    gguf_files.pair(tmp_path, tiny_dir)
    monkeypatch.chdir(tmp_path)
    assert len(open_higgs("higgs-audio-f16.gguf").files) == 2


def test_names_are_undone_for_the_whole_published_inventory():
    """Short names by the rules of HiggsTTS.cpp's converter; shapes as ggml's writer leaves them."""
    for spec in inventory(MODELS["4b"], CODECS["real"]):
        short = gguf_files.short_name(spec.name)
        assert upstream_name(short) == spec.name
        assert len(short) < 64
        shape = spec.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        assert full_shape(spec.name, shape) == spec.shape, spec.name
    assert upstream_name("blk.0.attn_q.bias") is upstream_name("blk.0.ssm_in.weight") is upstream_name("v.0") is None


def test_the_published_tokenizer_survives(tmp_path, published_tokenizer):
    content = json.loads(published_tokenizer.read_bytes())
    keys = {
        "general.architecture": "higgs-tts",
        "tokenizer.ggml.tokens": list(content["model"]["vocab"]),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
    }
    rebuilt = rebuild_tokenizer(read_gguf(gguf_files.container(tmp_path / "a.gguf", keys, [])))
    check_tokenizer(rebuilt, published_tokenizer.read_bytes())


SPLIT = {"split.count": 3}
B, BACKBONE, COMPANION = "b", "backbone", "companion"
REFUSED = {
    "another split of words": (BACKBONE, {"tokenizer.ggml.pre": "llama-bpe"}, "'llama-bpe'"),
    "another tokenizer": (BACKBONE, {"tokenizer.ggml.model": "llama"}, "'llama'"),
    "no vocabulary": (B, {"tokenizer.ggml.tokens": None}, "brings no tokenizer"),
    "no merges": (BACKBONE, {"tokenizer.ggml.merges": None}, "brings no tokenizer"),
    "words as numbers": (B, {"tokenizer.ggml.tokens": ("i32", [1])}, "no array of strings"),
    "a word twice": (B, {"tokenizer.ggml.tokens": ["a", "a"]}, "two tokens of one text"),
    "half of the tags": (B, {"tokenizer.ggml.tokens": ["a", "<|tts|>"]}, "lacks <|endoftext|>"),
    "other ids": (B, {"higgs.token.tts": 5}, r"<\|tts\|> is token 5"),
    "a merge of three": (B, {"tokenizer.ggml.merges": ["a b c"]}, "'a b c'"),
    "no width": (B, {"higgs.text.d_model": None}, r"higgs\.text\.d_model"),
    "a width of many": (B, {"higgs.text.d_model": ("i32", [1, 2])}, "has an array"),
    "no layers": (BACKBONE, {"qwen3.block_count": None}, r"qwen3\.block_count"),
    "another rope": (BACKBONE, {"qwen3.rope.scaling.type": "yarn"}, "rope type 'yarn'"),
    "another width": (BACKBONE, {"qwen3.embedding_length": 128}, "do not fit"),
    "part of a split": (BACKBONE, SPLIT, "one part of a split model"),
    "another companion": (COMPANION, {"higgs_audio.format": "higgs-audio-v2"}, "not the companion"),
    "other ends": (COMPANION, {"higgs_audio.eoc_id": 1026}, r"\[1024, 1026\]"),
    "codec without names": (COMPANION, {"higgs_audio.codec_original_tensor_names": ["x"]}, "does not name"),
}


@pytest.mark.parametrize("which, change, says", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_gets_a_sentence(tmp_path, tiny_dir, which, change, says):
    if which == B:
        file = gguf_files.higgstts_cpp(tmp_path / "b.gguf", tiny_dir, change=change)
    else:
        file = gguf_files.pair(tmp_path, tiny_dir, **{which: change})[0]
    with pytest.raises(CheckpointError, match=says) as caught:
        model = open_higgs(file)
        Tokenizer.parse(model.tokenizer(), "x")
        ModelConfig.from_checkpoint(model.config)
    assert str(caught.value).endswith(".")


def test_halves_without_the_other(tmp_path, tiny_dir):
    backbone, companion = gguf_files.pair(tmp_path, tiny_dir)
    second = tmp_path / "higgs-qwen3-backbone-Q4_K.gguf"
    os.link(backbone, second)
    assert len(open_higgs(second).files) == 2
    with pytest.raises(CheckpointError, match=r"2 files that may be its backbone .*Q4_K.*Give the one you want"):
        open_higgs(companion)
    os.link(companion, tmp_path / "higgs-audio-f32.gguf")
    with pytest.raises(CheckpointError, match=r"2 files that may be its companion .*Leave one"):
        open_higgs(backbone)
    (tmp_path / "higgs-audio-f32.gguf").unlink()
    companion.unlink()
    with pytest.raises(CheckpointError, match="put its companion"):
        open_higgs(backbone)


def test_another_architecture(tmp_path, tiny_dir):
    other = {"general.architecture": "audiocpp", "audiocpp.tensor_names": ["a"]}
    for keys, says in [
        ({"general.architecture": "llama"}, "architecture 'llama'"),
        ({}, "architecture None"),
        (other | {"audiocpp.model_spec.family": "qwen3_tts"}, "family 'qwen3_tts'"),
        ({"general.architecture": "higgs-tts"}, "t of .* belongs to no part"),
    ]:
        file = gguf_files.container(tmp_path / "a.gguf", keys, [("t", (1,), "F32", bytes(4))])
        with pytest.raises(CheckpointError, match=says):
            open_higgs(file)


BAD_ARRAYS = {
    "too few names": ({"audiocpp.tensor_names": ["a"]}, "does not name"),
    "numbers for names": ({"audiocpp.tensor_names": ("i32", [1])}, "no array of strings"),
    "too few ranks": ({"audiocpp.tensor_ranks": ("i32", [1])}, "does not name"),
    "negative ranks": ({"audiocpp.tensor_ranks": ("i32", [-1] * 3)}, "natural numbers"),
    "other shapes": ({"audiocpp.tensor_shapes": ("i64", [3, 5])}, "which cannot be"),
    "offsets astray": ({"audiocpp.embedded_files.offsets": ("u64", [0, 2**63, 2**63])}, r"damaged config\.json"),
    "too few offsets": ({"audiocpp.embedded_files.offsets": ("u64", [0])}, "damaged embedded files"),
    "no JSON": ({"audiocpp.embedded_files.offsets": ("u64", [0, 1, 1])}, r"config\.json of .* is damaged"),
}


@pytest.mark.parametrize("change, says", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_damaged_arrays_of_audiocpp(tmp_path, change, says):
    names = ["tied.embedding.modality_embeddings.0.embedding.weight", f"{CODEC}fc.bias"]
    keys = {
        "audiocpp.tensor_names": names,
        "audiocpp.tensor_ranks": ("i32", [2, 1]),
        "audiocpp.tensor_shapes": ("i64", [2, 3, 4]),
        "audiocpp.embedded_files.names": ["config.json", "tokenizer.json"],
        "audiocpp.embedded_files.offsets": ("u64", [0, 2, 2]),
        "audiocpp.embedded_files.data": ("u8", list(b"{}")),
    }
    tensors = [(names[0], (2, 3), "F32", bytes(24)), (names[1], (4,), "F32", bytes(16))]
    assert open_higgs(gguf_files.container(tmp_path / "good.gguf", keys, tensors)).config == {}
    with pytest.raises(CheckpointError, match=says):
        open_higgs(gguf_files.container(tmp_path / "bad.gguf", keys | change, tensors))
