"""`octavo quantize` and `octavo inspect --verify`: exit codes, sentences, and what is left on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from octavo.quant import quantizer
from octavo.quant.safetensors_file import patch
from octavo.runtime.checkpoint import Checkpoint


@pytest.fixture
def quantize(octavo, tiny_dir):
    return lambda *arguments: octavo("quantize", "--device", "cpu", tiny_dir, *arguments)


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    """A folder and a GGUF file, not judged."""
    from octavo.quant import quantize

    folder = tmp_path_factory.mktemp("made")
    quantize(tiny_dir, folder / "int8", format="int8", gate=False)
    quantize(tiny_dir, folder / "q8.gguf", format="gguf", type="q8_0", gate=False)
    return folder


@pytest.fixture
def failing(monkeypatch):
    """A gate that says no, at once."""
    from octavo.quant.scores import Scores

    eight = (0.1,) * 8
    scores = Scores(2, 20, eight, eight, eight, eight, 0.0, None, 0.0, (), (0.1, 0.2), None)
    monkeypatch.setattr(quantizer, "speak", lambda *_: ([], []))
    monkeypatch.setattr(quantizer, "_score", lambda *_: scores)


def test_the_last_line(quantize, tmp_path):
    outcome = quantize(tmp_path / "small.gguf", "--format", "gguf", "--no-gate")
    (line,) = outcome.out.splitlines()
    assert outcome.code == 0 and outcome.err == ""
    assert line.startswith(f"{tmp_path / 'small.gguf'}: 0.01 GB in ")
    assert "weights off by 6." in line and "peak memory" in line and line.endswith("; not judged")


def test_a_failed_gate(quantize, octavo, tmp_path, failing):
    out = tmp_path / "small"
    outcome = quantize(out, "--format", "int8")
    assert outcome.code == 3 and outcome.out.endswith("; failed the gate\n")
    last = outcome.err.splitlines()[-1]
    assert last.startswith("octavo: The quality gate failed.") and str(tmp_path / "small.failed") in last
    assert "Codebook" in outcome.err or "codebook" in outcome.err
    assert os.listdir(tmp_path) == ["small.failed"]
    table = octavo("quantize", "--compare", tmp_path / "small.failed", tmp_path / "small.failed")
    assert table.code == 0 and table.out.count("small.failed") == 2 and "fails" in table.out


@pytest.mark.parametrize(
    "format, type", [("awq", None), ("fp8", None), ("nf4", None), ("gguf", "q4_k_even"), ("gguf", "q6_k")]
)
def test_what_is_made_speaks(quantize, octavo, tmp_path, format, type):
    out = tmp_path / ("small.gguf" if type else "small")
    options = ["--type", type] if type else ["--calib", "none"] if format == "awq" else []
    assert quantize(out, "--format", format, "--no-gate", *options).code == 0
    spoken = octavo(
        "say", "Hi.", "--model", out, "--device", "cpu", "--max-rows", 20, "--seed", 1, "-o", tmp_path / "o.wav"
    )
    assert spoken.code == 0 and (tmp_path / "o.wav").stat().st_size > 10_000


def test_keep_may_be_given_more_than_once(quantize, tmp_path):
    out = tmp_path / "small.gguf"
    options = ("--keep", "text=bf16", "audio=f16", "--keep", "body.layers.0.mlp.*_proj=Q8_0")
    assert quantize(out, "--format", "gguf", "--type", "q4_0", "--no-gate", *options).code == 0
    info = Checkpoint.open(out).info
    assert info["tied.embedding.text_embedding.weight"].kind == "bf16"
    assert info["tied.embedding.modality_embeddings.0.embedding.weight"].kind == "fp16"
    assert [info[f"body.layers.{n}.mlp.up_proj.weight"].kind for n in (0, 1)] == ["Q8_0", "Q4_0"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["IN OUT"]),
        (["--keep", "text=bf16", "out", "--format", "int8"], ["IN and OUT come before --keep"]),
        (["out"], ["--format"]),
        (["out", "--format", "gptq"], ["'gptq'", "awq, gguf"]),
        (["out.gguf", "--format", "gguf", "--type", "q3_k"], ["'q3_k'", "q4_k_m"]),
        (["out", "--format", "int8", "--type", "q8_0"], ["--type"]),
        (["out", "--format", "awq", "--group-size", "48"], ["groups of 48", "--group-size of 128"]),
        (["out", "--format", "awq", "--group-size", "7"], ["group size is 7"]),
        (["out", "--format", "fp8", "--group-size", "64"], ["--group-size is for AWQ"]),
        (["out", "--format", "awq", "--calib", "absent.txt"], ["absent.txt cannot be read"]),
        (["out", "--format", "awq", "--calib", ""], ["--calib is empty"]),
        (["out", "--format", "int8", "--calib", "builtin"], ["heeds no calibration"]),
        (["out", "--format", "int8", "--keep", "text"], ["NAME=TYPE", "'text'"]),
        (["out", "--format", "int8", "--keep", "nothing=bf16"], ["nothing=bf16 fits no tensor"]),
        (["out", "--format", "awq", "--keep", "*.1.mlp.up_proj=bf16"], ["body.layers.1.*", "--calib none"]),
        (["out", "--format", "int8", "--report", "r.md", "--no-gate"], ["--no-gate"]),
        (["out", "--format", "int8", "--report", "absent/r.md"], ["absent/r.md"]),
        (["out", "--format", "int8", "--seed", "-1"], ["seed is -1"]),
        (["out.gguf", "--format", "int8"], ["will be a folder"]),
        (["out", "--format", "gguf"], ["ends in .gguf"]),
        (["absent/out", "--format", "int8"], ["absent/out", "folder"]),
        (["out", "--format", "int8", "--device", "abacus"], ["'abacus'"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_arguments(quantize, no_model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert quantize(*arguments).refused(*words)
    assert not list(tmp_path.iterdir())


def test_bad_sources(octavo, tmp_path, made, tiny_dir):
    def refused(source, *words):
        return octavo("quantize", source, tmp_path / "out", "--format", "int8").refused(*words)

    assert refused("absent", "absent") and refused(tmp_path, "config.json")
    assert refused(made / "int8", "quantized already", "int8") and refused(made / "q8.gguf", "quantized already")
    damaged = shutil.copytree(tiny_dir, tmp_path / "damaged")
    os.truncate(damaged / "model.safetensors", 1_000_000)
    assert refused(damaged, "truncated")
    cut = shutil.copy(made / "q8.gguf", tmp_path / "cut.gguf")
    os.truncate(cut, 1_000_000)
    assert refused(cut, "cut.gguf is truncated")
    assert sorted(os.listdir(tmp_path)) == ["cut.gguf", "damaged"]


def test_compare_prints_nothing_else(octavo, made, tmp_path):
    assert octavo("quantize", "x", "y", "--format", "int8", "--compare", made / "int8").refused("--compare")
    assert octavo("quantize", "--compare", made / "int8", "--report", tmp_path / "r.md").refused("--compare", "options")
    assert octavo("quantize", "--compare", tmp_path / "absent").refused("absent")
    outcome = octavo("quantize", "--compare", made / "int8", made / "q8.gguf")
    assert outcome.code == 0 and outcome.out.count("no scores") == 2


@contextlib.contextmanager
def largest_file(size):
    """A disk that is full after `size` bytes, as far as this process's files go."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name, format", [("out", "int8"), ("out.gguf", "gguf")])
@pytest.mark.parametrize("size", [10_000, 3_000_000], ids=["in the head", "in the weights"])
def test_full_disk(quantize, tmp_path, name, format, size):
    with largest_file(size):
        outcome = quantize(tmp_path / name, "--format", format, "--no-gate")
    assert outcome.refused(str(tmp_path / name), "cannot be written")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tiny_dir, tmp_path, number, code):
    """While it speaks, which takes the tiny model several seconds."""
    command = [sys.executable, "-m", "octavo.tools.cli", "quantize", tiny_dir, tmp_path / "out", "--format", "awq"]
    process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".octavo-*/out/model.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err, os.listdir(tmp_path)) == (code, "", [])


@pytest.mark.parametrize("name", ["int8", "q8.gguf"])
def test_verify(octavo, made, name):
    assert "all hashes are right" in octavo("inspect", made / name, "--verify").out
    facts = json.loads(octavo("inspect", made / name, "--verify", "--json").out)
    assert facts["verified"] == facts["provenance"]["sha256"]


@pytest.mark.parametrize(
    "file, at, what",
    [("int8/model.safetensors", -5, "weights"), ("q8.gguf", -5, "weights"), ("int8/config.json", 0, "")],
)
def test_verify_sees_what_was_changed(octavo, made, tmp_path, file, at, what):
    copy = shutil.copytree(made, tmp_path / "copy")
    content = bytearray((copy / file).read_bytes())
    if at:
        content[at] ^= 1
    else:
        content = content.replace(b'"initializer_range"', b'"other"').replace(b"1e-06", b"2e-06")
    (copy / file).write_bytes(content)
    assert octavo("inspect", copy / file.split("/")[0], "--verify").refused(what or "config.json", "is another")


def test_verify_sees_names_that_were_exchanged(octavo, made, tmp_path):
    """Of two tensors of one size: every byte of the weights is where it was."""
    copy = shutil.copytree(made / "int8", tmp_path / "copy")
    content = (copy / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    names = {"mlp.up_proj": "mlp.gate_proj", "mlp.gate_proj": "mlp.up_proj"}
    header = re.sub("|".join(names), lambda found: names[found[0]], content[:end].decode("latin-1"))
    (copy / "model.safetensors").write_bytes(header.encode("latin-1") + content[end:])
    assert octavo("inspect", copy, "--verify").refused("tensors is another")


def test_verify_sees_weights_in_a_second_file(octavo, made, tmp_path):
    copy = shutil.copytree(made / "int8", tmp_path / "copy")
    save_file({"tied.head.text_head.weight": torch.zeros(2, 2)}, copy / "more.safetensors")
    assert octavo("inspect", copy, "--verify").refused("tensors is another")


def test_verify_wants_hashes(octavo, tiny_dir):
    assert octavo("inspect", tiny_dir, "--verify").refused("holds no hashes")


def test_what_a_file_says_of_itself_stays_on_its_line(octavo, made, tmp_path):
    """It may be anybody's, and is printed to a terminal."""
    copy = shutil.copytree(made / "int8", tmp_path / "copy")
    patch(copy / "model.safetensors", {"type": "\x1b[31mint8\nquantized   all hashes are right"})
    *_, line = octavo("inspect", copy).out.splitlines()
    assert line == "quantized    [31mint8 quantized   all hashes are right by None from None: not judged"
