"""`octavo inspect`: the published figures from a file of the published size, in no time and without reading weights."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.voice import Voice
from octavo.tools.inventory import CODECS, MODELS, inventory
from octavo.tools.layout import config, header


@pytest.fixture(scope="module")
def real_size(tmp_path_factory):
    """The published layout with holes for weights: 9.3 GB to read, next to nothing on disk."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "config.json").write_text(json.dumps(config(MODELS["4b"])))
    head = header(inventory(MODELS["4b"], CODECS["real"]), "bf16")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(head)
        file.truncate(len(head) + 2 * 4_654_850_537)
    assert (folder / "model.safetensors").stat().st_blocks * 512 < 10e6, "this file system keeps no holes"
    return folder


def test_published_figures(octavo, real_size, monkeypatch):
    monkeypatch.setattr(Checkpoint, "_map", lambda *_: pytest.fail("a weight was read"))
    begin = time.process_time()
    outcome = octavo("inspect", real_size, "--json")
    assert time.process_time() - begin < 1
    facts = json.loads(outcome.out)
    assert outcome.code == 0 and outcome.err == ""
    assert (facts["tensor_count"], facts["parameters"], facts["bytes"]) == (929, 4_654_850_537, 9_309_701_074)
    parts = {name: (part["tensors"], part["parameters"]) for name, part in facts["parts"].items()}
    assert parts == {
        "language model": (397, 3_633_511_936),
        "text table": (1, 388_956_160),
        "audio table": (1, 21_012_480),
        "codec": (528, 201_401_321),
        "tied copies": (2, 409_968_640),
    }
    assert facts["dtypes"] == {"bf16": 929} and facts["shards"] == ["model.safetensors"]
    assert facts["kv_cache"] == {"bytes_per_row": 144 * 1024, "rows": 8192, "bytes": 1152 * 2**20}
    assert facts["weights_per_row"] == {"parameters": 3_654_524_416, "bytes": 2 * 3_654_524_416}
    assert facts["codec"]["widths"] == [1024, 512, 256, 128, 64, 32]
    assert facts["config"]["num_layers"] == 36


def processor_seconds() -> float:
    """Of this process's children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_command_takes_about_a_second(real_size):
    command = [sys.executable, "-m", "octavo.tools.cli", "inspect", str(real_size)]
    begin = processor_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Importing torch is most of it; a read of the weights would not fit. Not the wall's time: the machine may be busy.
    assert processor_seconds() - begin < 5
    assert "4,654,850,537" in done.stdout and "144 KiB per row" in done.stdout and "9.31 GB" in done.stdout


def test_every_tensor(octavo, tiny_dir):
    facts = json.loads(octavo("inspect", tiny_dir, "--json", "--tensors").out)
    assert facts["tensors"]["body.norm.weight"] == {"dtype": "bf16", "shape": [256], "shard": "model.safetensors"}
    assert len(facts["tensors"]) == facts["tensor_count"]
    assert sum(part["parameters"] for part in facts["parts"].values()) == facts["parameters"]
    text = octavo("inspect", tiny_dir, "--tensors").out
    assert "body.norm.weight  bf16  [256]  model.safetensors" in text.splitlines()


def test_an_audio_head_of_its_own_is_counted_as_such(octavo, tmp_path):
    from octavo.tools.make_checkpoint import make_checkpoint

    facts = json.loads(octavo("inspect", make_checkpoint(tmp_path / "out", untied_audio=True), "--json").out)
    assert facts["parts"]["audio head"]["tensors"] == facts["parts"]["tied copies"]["tensors"] == 1
    assert facts["config"]["tied_audio"] is False


def test_norms_in_fp32_do_not_double_the_cache(octavo, tiny_dir, tmp_path):
    from octavo.quant import quantize

    caches = []
    for model in (tiny_dir, *(quantize(tiny_dir, tmp_path / f"{type}.gguf", format="gguf", type=type, gate=False,
                                       device="cpu").path for type in ("bf16", "q8_0"))):  # fmt: skip
        caches.append(json.loads(octavo("inspect", model, "--json").out)["kv_cache"]["bytes_per_row"])
    assert caches[0] == caches[1] == caches[2]


def test_a_voice_file(octavo, tmp_path):
    codes = np.arange(8 * 30, dtype=np.int16).reshape(30, 8)
    Voice(codes, "What I said.", name="ann", licence="CC0", codec="c0dec", seed=3).save(tmp_path / "ann.safetensors")
    facts = json.loads(octavo("inspect", tmp_path / "ann.safetensors", "--json").out)
    assert (facts["name"], facts["transcript"], facts["seed"], facts["frames"], facts["seconds"]) == (
        "ann", "What I said.", 3, 30, 1.2,
    )  # fmt: skip
    assert "CC0" in octavo("inspect", tmp_path / "ann.safetensors").out


def damaged(tmp_path, tiny_dir, how):
    folder = shutil.copytree(tiny_dir, tmp_path / "damaged")
    how(folder)
    return folder


def edit(name, **changes):
    def how(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return how


@pytest.mark.parametrize(
    "how, words",
    [
        (lambda f: os.truncate(f / "model.safetensors", 1_000_000), ["model.safetensors is truncated"]),
        (lambda f: os.truncate(f / "model.safetensors", 4), ["truncated"]),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"not a header" + bytes(9)), ["damaged"]),
        (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "named by model.safetensors.index.json"]),
        (lambda f: (f / "config.json").write_text("{nonsense"), ["config.json is not JSON"]),
        (lambda f: (f / "config.json").unlink(), ["config.json cannot be read"]),
        (edit("config.json", architectures=["LlamaForCausalLM"], model_type="llama"), ["llama"]),
        (edit("config.json", text_config=None), ["text_config"]),
        (edit("model.safetensors.index.json", weight_map={"a": "b.safetensors"}), ["lacks b.safetensors"]),
    ],
)
def test_damaged_checkpoints(octavo, tmp_path, tiny_dir, how, words):
    assert octavo("inspect", damaged(tmp_path, tiny_dir, how)).refused(*words)


def test_nothing_there(octavo, tmp_path):
    assert octavo("inspect", tmp_path / "absent").refused("is not a folder")
    (tmp_path / "text.txt").write_text("no voice")
    assert octavo("inspect", tmp_path / "text.txt").refused("not a voice file")
