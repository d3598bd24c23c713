"""`octavo.quant.quantize`: what it writes, what remains when it fails, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from octavo import quant
from octavo.quant import output, quantize, quantizer, rows, texts
from octavo.quant.scores import Scores
from octavo.quant.source import open_source
from octavo.runtime import CheckpointError, Engine, RequestError
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.verify import digests, provenance, verify
from octavo.tools.make_checkpoint import make_checkpoint

from ..runtime import gguf_files
from .speakers import speaker_checkpoint

LINEAR = "body.layers.1.mlp.up_proj.weight"
NORM = "body.layers.1.input_layernorm.weight"
TEXT = "tied.embedding.text_embedding.weight"
ALPHA = "tied.embedding.modality_embeddings.0.model.acoustic_decoder.snake1.alpha"
MOST = {"awq": 0.11, "nf4": 0.1, "fp8": 0.03, "int8": 0.01, "q4_k_even": 0.08, "q5_k": 0.04, "q6_k": 0.02,
        "q8_0": 0.006, "q4_0": 0.09}  # relative L2 of normal numbers  # fmt: skip
EIGHT = (0.5,) * 8
SCORES = Scores(2, 20, EIGHT, EIGHT, EIGHT, EIGHT, 0.0, None, 0.0, (), (0.1, 0.2), None)  # bad ones
KINDS = [{"format": name, "calib": "none"} for name in ("awq", "nf4", "fp8", "int8")]
KINDS += [{"format": "gguf", "type": name} for name in (*[name for name in MOST if name[0] == "q"], "bf16", "f16")]


def out(tmp_path, options):
    return tmp_path / ("out.gguf" if options["format"] == "gguf" else "out")


def relative(made, source):
    return float((made.float() - source.float()).norm() / source.float().norm())


@pytest.fixture
def ungated(tiny_dir, tmp_path):
    """Without the gate, on the CPU."""

    def call(path=None, source=tiny_dir, **options):
        return quantize(source, path or out(tmp_path, options), gate=False, device="cpu", **options)

    return call


@pytest.fixture(scope="module")
def spoken(tiny_dir):
    """Two short utterances of the tiny model."""
    with rows.speaker(tiny_dir, "cpu") as engine:
        return rows.draw(engine, ["Yes.", "On we go."], max_rows=24)


@pytest.fixture
def gated(tiny_dir, tmp_path, spoken, monkeypatch):
    """With the gate, on those two."""
    monkeypatch.setattr(
        quantizer, "speak", lambda _, wanted, gate, *__: (spoken if wanted.sentences else [], spoken if gate else [])
    )

    def call(path=None, **options):
        return quantize(tiny_dir, path or out(tmp_path, options), device="cpu", **options)

    return call


def test_the_package_finds_it_when_asked():
    assert quant.quantize is quantizer.quantize and quant.Result is quantizer.Result
    with pytest.raises(AttributeError, match="nothing"):
        quant.nothing  # noqa: B018


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o.get("type", o["format"]))
def test_every_format(ungated, tiny_dir, options):
    result = ungated(**options)
    made, source = Checkpoint.open(result.path), Checkpoint.open(tiny_dir)
    assert set(made) == {name for name in source if not name.startswith("tied.head.")}
    most = MOST.get(options.get("type", options["format"]), 1e-3)  # else 16-bit numbers
    for name in made:
        assert made.info[name].shape == source.info[name].shape
        error = relative(made[name], source[name])
        assert error == pytest.approx(result.relative_l2.get(name, 0.0), abs=1e-3 * most + 1e-6)
        assert error <= (most if name.startswith("body") else MOST["int8"] if name == TEXT else 1e-6)
    files = [result.path] if result.path.is_file() else list(result.path.iterdir())
    assert result.nbytes == sum(file.stat().st_size for file in files) and result.passed and result.scores is None
    assert made.tokenizer_bytes() == source.tokenizer_bytes()
    verify(made)


def test_a_folder_is_complete_and_aligned(ungated, tiny_dir):
    path = ungated(format="nf4").path
    assert {file.name for file in path.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (path, tiny_dir))
    assert before.items() <= config.items() and config["octavo"]["text_embedding"] == "int8"
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    checkpoint = Checkpoint.open(path)
    regions = [part for stored in checkpoint.info.values() for part in stored.parts.values()]
    assert all(part.begin % part.dtype.itemsize == 0 for part in regions)
    with safe_open(path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {f"{LINEAR}.absmax", ALPHA} <= set(file.keys())
        assert torch.equal(file.get_tensor(ALPHA), load_file(tiny_dir / "model.safetensors")[ALPHA])


@pytest.mark.parametrize(
    "format, expected",
    [
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}),
        ("int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("fp8", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    ],
)
def test_what_other_programs_are_told(ungated, format, expected):
    options = {"group_size": 64, "calib": "none"} if format == "awq" else {}
    path = ungated(format=format, keep={"body.layers.0.*_proj": "bf16"}, **options).path
    told = json.loads((path / "config.json").read_text())["quantization_config"]
    assert expected.items() <= told.items()
    kept = told.get("modules_to_not_convert") or told.get("llm_int8_skip_modules") or told["ignore"]
    assert "tied" in kept[0] and "body.layers.0.self_attn.q_proj" in kept and len(kept) == 8


def test_what_a_file_says_of_itself(ungated, tiny_dir):
    made = Checkpoint.open(ungated(format="gguf", type="q6_k", keep={"text": "bf16"}).path)
    said = provenance(made)
    assert said["source"]["name"] == tiny_dir.name and str(tiny_dir.parent) not in json.dumps(said)
    assert said["keep"] == {"text": "bf16"} and said["calibration"] == {"sentences": 0}
    assert said["type"] == "q6_k" and said["bits"] == 6 and said["scores"] is None
    assert set(said["relative_l2"]) == {name for name in made if made.info[name].kind == "Q6_K"}
    assert said["sha256"] == digests(made)


def test_the_same_arguments_give_the_same_file(ungated, tmp_path):
    first, second = (ungated(tmp_path / f"{n}.gguf", format="gguf", type="q4_0").path for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_a_search_folds_scales_into_norms(gated, tiny_dir):
    result = gated(format="awq", gate=False)
    made, source = Checkpoint.open(result.path), Checkpoint.open(tiny_dir)
    assert made.quantization == {"awq"} and made.info[NORM].kind == "fp32"
    assert not torch.equal(made[NORM], source[NORM].float())
    assert provenance(made)["calibration"]["sentences"] == len(texts.CALIBRATION)
    assert len(result.relative_l2) == 4 * 7 + 1 and all(0 < error < 0.11 for error in result.relative_l2.values())


def test_a_layer_may_stay_out_of_the_search(gated, tiny_dir):
    made = Checkpoint.open(gated(format="awq", gate=False, keep={"body.layers.1.*_proj": "bf16"}).path)
    source = Checkpoint.open(tiny_dir)
    assert all(torch.equal(made[name], source[name]) for name in (LINEAR, NORM))
    assert made.info[LINEAR.replace("1", "2")].kind == "awq"


def test_a_norm_that_takes_scales_may_have_another_type(gated):
    made = Checkpoint.open(gated(format="awq", gate=False, keep={NORM: "bf16"}).path)
    assert made.info[NORM].kind == "bf16" and made.info[LINEAR].kind == "awq"


def test_importance_changes_what_is_written(gated, tmp_path):
    plain = gated(tmp_path / "plain.gguf", format="gguf", type="q4_k", gate=False)
    weighed = gated(tmp_path / "weighed.gguf", format="gguf", type="q4_k", gate=False, calib="builtin")
    a, b = (Checkpoint.open(result.path)[LINEAR] for result in (plain, weighed))
    assert not torch.equal(a, b) and weighed.relative_l2[LINEAR] > plain.relative_l2[LINEAR]


def test_the_gate_passes_what_lost_nothing(gated):
    result = gated(format="gguf", type="bf16")
    assert result.passed and result.path.name == "out.gguf"
    assert result.scores.top1 == (1.0,) * 8 and max(result.scores.kl_mean) < 1e-6
    said = provenance(Checkpoint.open(result.path))
    assert said["scores"] == json.loads(json.dumps(result.scores.to_dict())) and said["failures"] == []


@pytest.mark.parametrize("options, name", [({"format": "int8"}, "out.failed"), ({"format": "gguf"}, "out.failed.gguf")])
def test_what_fails_is_kept_apart(gated, tmp_path, monkeypatch, options, name):
    monkeypatch.setattr(quantizer, "_score", lambda *_: SCORES)
    result = gated(**options)
    assert not result.passed and result.path == tmp_path / name
    assert os.listdir(tmp_path) == [name]
    assert provenance(Checkpoint.open(result.path))["failures"] == list(result.failures)
    with pytest.raises(RequestError, match="out.failed.* exists already"):
        gated(**options)
    assert gated(**options, force=True).path == result.path and os.listdir(tmp_path) == [name]


def test_a_report(gated, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(quantizer, "_score", lambda *_: SCORES)
    result = gated(format="gguf", type="bf16", report=tmp_path / "report.md")
    assert {path.name for path in tmp_path.iterdir()} == {"out.failed.gguf", "report.md", "report.json", "report.png"}
    assert json.loads((tmp_path / "report.json").read_text())["bytes"] == result.nbytes
    assert "out.failed.gguf" in (tmp_path / "report.md").read_text()


def test_a_gguf_file_is_a_source_too(ungated, tmp_path):
    plain = ungated(tmp_path / "plain.gguf", format="gguf", type="bf16").path
    through, direct = ungated(tmp_path / "a", source=plain, format="int8"), ungated(tmp_path / "b", format="int8")
    a, b = Checkpoint.open(through.path), Checkpoint.open(direct.path)
    assert torch.equal(a[LINEAR], b[LINEAR]) and a.tokenizer_bytes() == b.tokenizer_bytes()


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A model that ends its speech by itself, and whose codes are decided."""
    return speaker_checkpoint(tmp_path_factory.mktemp("speaker"))


def test_from_end_to_end(speaker, tmp_path, monkeypatch):
    """Nothing replaced but the sentences: 8 bits pass the gate, and choose the same codes."""
    monkeypatch.setattr(texts, "GATE", ("Yes.", "No, thank you.", "On we go."))
    stages: dict[str, tuple[int, int]] = {}
    options = {"format": "gguf", "type": "q8_0", "device": "cpu"}
    result = quantize(
        speaker, tmp_path / "q8.gguf", **options, progress=lambda stage, *done: stages.__setitem__(stage, done)
    )
    assert result.passed and result.scores.free.count == 3 and min(result.scores.top1) > 0.98
    assert list(stages) == ["checking", "speaking", "writing", "listening", "comparing"]
    assert all(done == total for done, total in stages.values())
    said = []
    for model in (speaker, result.path):
        with Engine.load(model, "cpu", "fp32", worker=False) as engine:
            requests = [engine.generate(text, temperature=0, seed=1, max_rows=40) for text in ("Hello there.", "Off!")]
        said.append([row for speech in requests for row in speech.codes.tolist()])
    assert sum(a == b for a, b in zip(*said, strict=False)) >= 0.9 * len(said[0]) > 9


def test_other_readers_open_it(ungated):
    gguf = pytest.importorskip("gguf")
    path = ungated(format="gguf", type="q4_k_m").path
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    made = Checkpoint.open(path)
    found = torch.from_numpy(gguf.dequantize(tensors[LINEAR].data, tensors[LINEAR].tensor_type))
    assert torch.equal(found, made[LINEAR]) and len(tensors) == len(made)
    weights = load_file(ungated(format="awq", calib="none").path / "model.safetensors")
    module = LINEAR.removesuffix("weight")
    assert weights[module + "qweight"].shape == (256, 1024 // 8) and weights[module + "scales"].shape == (2, 1024)


# What is refused, before anything is written.


def broken(tiny_dir, folder, **values):
    shutil.copytree(tiny_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in values.items():
        tensors[name].view(-1)[-2] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", [LINEAR, TEXT, ALPHA])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers(ungated, tiny_dir, tmp_path, name, value):
    source = broken(tiny_dir, tmp_path / "source", **{name: value})
    with pytest.raises(CheckpointError, match=name):
        ungated(source=source, format="int8")
    assert os.listdir(tmp_path) == ["source"]


def test_numbers_too_large_for_fp16(ungated, tiny_dir, tmp_path):
    source = broken(tiny_dir, tmp_path / "source", **{LINEAR: 70000.0})
    with pytest.raises(CheckpointError, match=f"{LINEAR}.*too large for fp16"):
        ungated(source=source, format="gguf", type="f16")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("options", [{"format": "gguf", "type": "q8_0"}, {"format": "awq", "calib": "none"}], ids=str)
def test_numbers_too_large_for_the_scales(ungated, tiny_dir, tmp_path, options):
    source = broken(tiny_dir, tmp_path / "source", **{LINEAR: 3e7})
    with pytest.raises(CheckpointError, match=f"{LINEAR}.* too large for .*--keep"):
        ungated(source=source, **options)
    assert os.listdir(tmp_path) == ["source"]
    assert ungated(source=source, format="int8").path  # whose scales are fp32


def test_copies_that_are_none_are_kept(ungated, tiny_dir, tmp_path):
    head = "tied.head.text_head.weight"
    result = ungated(source=broken(tiny_dir, tmp_path / "source", **{head: 1.0}), format="int8")
    assert head in Checkpoint.open(result.path) and head in result.notes[0]


def test_an_audio_head_of_its_own_stays(ungated, tmp_path):
    source = make_checkpoint(tmp_path / "source", untied_audio=True)
    made = Checkpoint.open(ungated(source=source, format="int8").path)
    assert "tied.head.modality_heads.0.weight" in made and "tied.head.text_head.weight" not in made


def test_quantized_already(ungated, tmp_path):
    for number, options in enumerate(({"format": "nf4"}, {"format": "gguf", "type": "q8_0"})):
        made = ungated(**options).path
        with pytest.raises(CheckpointError, match="quantized already.*16-bit"):
            ungated(tmp_path / str(number), source=made, format="int8")


def test_too_little_disk(ungated, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    monkeypatch.setattr(quantizer, "check_finite", lambda *_: pytest.fail("it has begun"))
    for options in ({"format": "int8"}, {"format": "gguf"}):
        with pytest.raises(RequestError, match="takes .* MB, and its disk has 1.00 MB free"):
            ungated(**options)
    assert not os.listdir(tmp_path)


def test_what_exists_is_not_replaced_unasked(ungated, tmp_path):
    (tmp_path / "out.gguf").write_bytes(b"precious")
    with pytest.raises(RequestError, match="exists already.*--force"):
        ungated(format="gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"precious"
    assert ungated(format="gguf", force=True).nbytes == (tmp_path / "out.gguf").stat().st_size
    first = ungated(format="int8").path
    with pytest.raises(RequestError, match="exists already"):
        ungated(format="fp8")
    assert ungated(format="fp8", force=True).path == first and Checkpoint.open(first).quantization == {"fp8"}
    assert sorted(os.listdir(tmp_path)) == ["out", "out.gguf"]


def test_force_removes_nothing_but_checkpoints(ungated, tmp_path):
    (tmp_path / "out" / "photos").mkdir(parents=True)
    with pytest.raises(RequestError, match="holds other things"):
        ungated(format="int8", force=True)
    assert (tmp_path / "out" / "photos").is_dir()


@pytest.mark.parametrize(
    "name, format, words",
    [("out.bin", "gguf", "ends in .gguf"), ("out.gguf", "int8", "a folder"), ("absent/out", "int8", "folder"),
     ("", "int8", "no name"), ("n" * 300, "int8", "name is too long"), ("n" * 250, "int8", "name is too long")],
)  # fmt: skip
def test_names_that_do_not_fit(tiny_dir, tmp_path, monkeypatch, name, format, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        quantize(tiny_dir, name, format=format)
    assert not os.listdir(tmp_path)


def test_the_source_is_not_written_over(tiny_dir, tmp_path):
    source = shutil.copytree(tiny_dir, tmp_path / "a" / "source")
    for target in (source, tmp_path / "a"):
        with pytest.raises(RequestError, match="is read as well"):
            quantize(source, target, format="int8", force=True)
    failed = source.rename(tmp_path / "a" / "out.failed")  # where a copy goes that fails
    with pytest.raises(RequestError, match="is read as well"):
        quantize(failed, tmp_path / "a" / "out", format="int8", force=True)
    assert open_source(failed).checkpoint.nbytes


def test_the_other_half_of_the_source_is_not_written_over(tiny_dir, tmp_path):
    backbone, companion = gguf_files.pair(tmp_path, tiny_dir)
    files = open_source(backbone).files
    assert files == {backbone, companion}
    for path in files:
        with pytest.raises(RequestError, match="is read as well"):
            output.Output(path, files, is_file=True, force=True)


def test_where_a_failed_one_goes(tmp_path, monkeypatch):
    """Beside what a symbolic link points to; named as the user named the place, where that can be."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link.gguf").symlink_to("far/real.gguf")
    monkeypatch.chdir(tmp_path / "far")
    for name, is_file, failed in [
        ("../link.gguf", True, tmp_path / "far" / "real.failed.gguf"),
        ("small.gguf", True, Path("small.failed.gguf")),
        (".", False, tmp_path / "far.failed"),
    ]:
        assert output.Output(name, (), is_file=is_file, force=True).failed_path == failed


def test_a_source_whose_name_is_no_text(ungated, tiny_dir, tmp_path):
    source = os.path.join(tmp_path, os.fsdecode(b"B\xe4r"))
    shutil.copytree(tiny_dir, source)
    for options in ({"format": "gguf"}, {"format": "int8"}):
        made = Checkpoint.open(ungated(source=source, **options).path)
        assert provenance(made)["source"]["name"] == "B\ufffdr" and verify(made)


def test_a_side_file_that_is_no_text(ungated, tiny_dir, tmp_path):
    source = shutil.copytree(tiny_dir, tmp_path / "source")
    (source / "tokenizer_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="tokenizer_config.json is not UTF-8"):
        ungated(source=source, format="gguf")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name, why", [("config.md", "is read as well"), ("absent/report", "folder does not exist")])
def test_a_report_that_cannot_be_written_is_refused_before(tiny_dir, tmp_path, name, why):
    pytest.importorskip("matplotlib")
    source = shutil.copytree(tiny_dir, tmp_path / "source")
    with pytest.raises(RequestError, match=why):
        quantize(source, tmp_path / "out", format="int8", report=source / name)
    assert (
        os.listdir(tmp_path) == ["source"]
        and (source / "config.json").read_bytes() == (tiny_dir / "config.json").read_bytes()
    )


def test_a_report_is_not_named_as_the_checkpoint(tiny_dir, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(RequestError, match="small.json is the checkpoint"):
        quantize(tiny_dir, tmp_path / "small.json", format="int8", report=tmp_path / "small.md")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")], ids=str)
@pytest.mark.parametrize("format", ["int8", "gguf"])
def test_nothing_is_left_when_it_ends_early(ungated, tmp_path, monkeypatch, format, error):
    calls = iter(range(20))
    real = quantizer.encode

    def stopping(*arguments):
        if next(calls) == 12:
            raise error
        return real(*arguments)

    monkeypatch.setattr(quantizer, "encode", stopping)
    with pytest.raises(RequestError if isinstance(error, OSError) else error):
        ungated(format=format)
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_renamed_brings_the_old_one_back(ungated, tmp_path, monkeypatch):
    ungated(format="int8")
    replace, calls = os.replace, iter(range(9))

    def failing(source, target):
        if next(calls) == 1:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(output, "os", SimpleNamespace(**{**vars(os), "replace": failing}))
    with pytest.raises(RequestError):
        ungated(format="fp8", force=True)
    assert os.listdir(tmp_path) == ["out"] and Checkpoint.open(tmp_path / "out").quantization == {"int8"}
