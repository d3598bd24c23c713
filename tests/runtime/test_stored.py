"""Quantized checkpoints as the runtime reads them: found by names and types, decoded, refused with a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from quantized import ENCODERS, quantized
from safetensors.torch import load_file, save_file

from octavo.kernels.packed import Packed
from octavo.quant.formats import nf4
from octavo.quant.formats.grouped import Grouped, stack
from octavo.runtime import CheckpointError, Engine
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.models import load_model
from octavo.runtime.packed_bytes import body_bytes

TEXT = "tied.embedding.text_embedding.weight"
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_format_is_found_and_means_what_it_should(tiny_dir, tmp_path, kind):
    source, checkpoint = Checkpoint.open(tiny_dir), Checkpoint.open(quantized(tiny_dir, tmp_path / kind, kind))
    assert set(checkpoint) == set(source) and checkpoint.quantization == {kind}
    name = "body.layers.1.mlp.down_proj.weight"
    matrix, want = checkpoint.matrix(name), source[name].float()
    assert isinstance(matrix, Grouped) and checkpoint.info[name].shape == matrix.shape == tuple(want.shape)
    assert checkpoint.info[name].nbytes < source.info[name].nbytes * 0.6
    error = (matrix.dequantize() - want).norm() / want.norm()
    assert 1e-4 < error < (0.12 if matrix.bits == 4 else 0.04)
    assert torch.equal(checkpoint[name], matrix.dequantize())
    model = load_model(checkpoint, CPU, torch.float32, lambda done, total: None)
    held = model.body.layers[1].down_proj.weight
    held = held.dense(torch.float32) if isinstance(held, Packed) else held
    assert torch.equal(held, matrix.dequantize())


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_quantized_model_speaks(tiny_dir, tmp_path, kind):
    with Engine.load(quantized(tiny_dir, tmp_path / kind, kind), device="cpu") as engine:
        assert engine.model.dtype == torch.bfloat16
        assert len(engine.generate("One.", temperature=0, max_rows=12).pcm)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_rows_of_a_quantized_text_table(tiny_dir, tmp_path, kind):
    checkpoint = Checkpoint.open(quantized(tiny_dir, tmp_path / kind, kind, only=TEXT))
    rows = torch.tensor([3, 0, 200, 3])
    assert checkpoint.info[TEXT].kind == kind and checkpoint.quantization == set()
    assert torch.equal(checkpoint.table(TEXT)(rows), checkpoint[TEXT][rows])


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


MODULE = "body.layers.0.self_attn.q_proj."
NO_JSON = torch.zeros(9, dtype=torch.uint8)
DAMAGE = {
    "no zeros": ("awq", lambda t: t.pop(MODULE + "qzeros"), "q_proj.qzeros is missing"),
    "other groups": ("awq", lambda t: t.update({MODULE + "qzeros": t[MODULE + "qzeros"][:1]}), "q_proj.weight"),
    "no matrix": ("awq", lambda t: t.update({MODULE + "qweight": torch.zeros(8, dtype=torch.int32)}), "no matrix"),
    "twice": ("awq", lambda t: t.update({MODULE + "weight": torch.zeros(8, 8)}), "stored twice"),
    "no scale": ("int8", lambda t: t.pop(MODULE + "SCB"), "q_proj.SCB is missing"),
    "scales of another matrix": ("int8", lambda t: t.update({MODULE + "SCB": torch.ones(3)}), "q_proj.weight"),
    "no channel scale": ("fp8", lambda t: t.pop(MODULE + "weight_scale"), "weight_scale is missing"),
    "no state": ("nf4", lambda t: t.pop(MODULE + nf4.STATE), "q_proj"),
    "a state that is no JSON": ("nf4", lambda t: t.update({MODULE + nf4.STATE: NO_JSON}), "q_proj"),
}  # fmt: skip


@pytest.mark.parametrize("kind, change, says", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_does_not_belong_together(tiny_dir, tmp_path, kind, change, says):
    folder = quantized(tiny_dir, tmp_path / kind, kind, only="body.layers.0")
    edit(folder, change)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_model(Checkpoint.open(folder), CPU, torch.float32, lambda done, total: None)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "config, says",
    [
        ({"quant_method": "awq", "version": "gemv"}, "gemm"),
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
    ],
)
def test_methods_that_would_be_misread(tiny_dir, tmp_path, config, says):
    folder = Path(shutil.copytree(tiny_dir, tmp_path / "copy"))
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": config}))
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(folder)


def random_part(rows: int, columns: int, group: int, bits: int, offset: bool) -> Grouped:
    low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    scale = torch.rand(rows, columns // group) + 0.1
    return Grouped(
        torch.randint(low, high, (rows, columns), dtype=dtype), scale, torch.randn_like(scale) if offset else None
    )


@pytest.mark.parametrize(
    "parts",
    [
        [(8, 64, 32, 4, True), (4, 64, 32, 4, True)],
        [(8, 64, 32, 4, True), (4, 64, 16, 8, False)],  # Q4_K beside Q6_K
        [(8, 64, 64, 8, False), (4, 64, 32, 8, True), (4, 64, 16, 4, False)],
    ],
)
def test_stacked_parts_mean_what_they_meant(parts):
    grouped = [random_part(*part) for part in parts]
    whole = stack(grouped)
    assert isinstance(whole, Grouped)
    assert whole.group == min(part.group for part in grouped) and whole.bits == max(part.bits for part in grouped)
    assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in grouped]))


def test_what_cannot_be_stacked_becomes_plain():
    part, plain = random_part(8, 64, 32, 4, True), torch.randn(4, 64).bfloat16()
    mixed = stack([part, plain])
    assert isinstance(mixed, torch.Tensor) and torch.equal(mixed, torch.cat([part.dequantize(), plain.float()]))
    floats = Grouped(torch.randn(4, 64).to(torch.float8_e4m3fn), torch.ones(4, 1))
    mixed = stack([part, floats])
    assert isinstance(mixed, torch.Tensor) and torch.equal(mixed[8:], floats.dequantize())
    table = Grouped(part.codes, part.scale, None, torch.linspace(-1, 1, 16))
    mixed = stack([part, table])
    assert isinstance(mixed, torch.Tensor) and torch.equal(mixed[8:], table.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ENCODERS)
def test_the_memory_plan_counts_quantized_layers_to_the_byte(tiny_dir, tmp_path, kind, dtype):
    checkpoint = Checkpoint.open(quantized(tiny_dir, tmp_path / kind, kind))
    model = load_model(checkpoint, CPU, dtype, lambda done, total: None)
    layers = [layer for layer in model.body.layers]
    linears = [x for layer in layers for x in (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj)]
    norms = [x for layer in layers for x in (layer.input_norm, layer.mlp_norm, layer.qk_norm)] + [model.body.norm]
    held = sum(linear.weight.nbytes for linear in linears) + sum(norm.numel() * norm.itemsize for norm in norms)
    assert body_bytes(checkpoint, ModelConfig.from_checkpoint(checkpoint.config), CPU)(dtype) == held
