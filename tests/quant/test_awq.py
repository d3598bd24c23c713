"""AWQ of whole models: its folds change nothing, and with outlier channels it loses far less than rounding does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference import Reference

from octavo.quant import awq
from octavo.quant.awq_search import Inputs, Scales
from octavo.quant.formats import awq as layout
from octavo.quant.formats.grouped import Grouped
from octavo.quant.walk import Walk
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.models.qwen3 import PRODUCTS
from octavo.tools.make_checkpoint import make_checkpoint

from .outliers import outlier_checkpoint, rewritten
from .utterances import utterance

CALIBRATION = [utterance(seed, frames=20, reference=10 * (seed % 2)) for seed in range(8)]
UNSEEN = [utterance(seed, frames=20, reference=10 * (seed % 2)) for seed in range(100, 104)]


def walk(folder: Path, utterances=CALIBRATION, device: str = "cpu") -> Walk:
    return Walk(Checkpoint.open(folder), utterances, torch.device(device), torch.float32)


def logits(folder: Path) -> torch.Tensor:
    walked = walk(folder, UNSEEN)
    list(walked.layers())
    return walked.logits().view(-1, 8, 1026)


def divergence(want: torch.Tensor, got: torch.Tensor) -> float:
    """Mean KL over rows and codebooks."""
    p, q = want.log_softmax(-1), got.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def numbers(quantized: dict[str, Grouped | torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: v.dequantize() if isinstance(v, Grouped) else v for name, v in quantized.items()}


@pytest.fixture(scope="module")
def outliers(tmp_path_factory) -> Path:
    return outlier_checkpoint(tmp_path_factory.mktemp("awq") / "outliers", layers=2)


@pytest.fixture(scope="module")
def searched(outliers) -> tuple[dict[str, Grouped | torch.Tensor], list[awq.Figures]]:
    figures: list[awq.Figures] = []
    return dict(awq.quantize_model(walk(outliers), 64, report=figures.append)), figures


def test_folds_are_exact(tmp_path):
    """With any scales, in float64: heads in groups, and several of these."""
    source = make_checkpoint(tmp_path / "source", layers=2, heads=6, kv_heads=2, tied_copies=False)
    checkpoint = Checkpoint.open(source)
    cfg, random = ModelConfig.from_checkpoint(checkpoint.config), torch.Generator().manual_seed(0)
    folded: dict[str, torch.Tensor] = {}
    for number in range(2):
        draw = {name: torch.rand(n, generator=random, dtype=torch.float64) + 0.5
                for name, n in (("qkv", 256), ("o", 2 * 64), ("gate_up", 256), ("down", 1024))}  # fmt: skip
        draw["o"] = draw["o"].view(2, 1, 64).expand(2, 3, 64).reshape(-1)
        scales = {name: Scales(channels, 0.5, 1.0, 1.0) for name, channels in draw.items()}
        for name, modules in PRODUCTS.items():
            for module in modules:
                key = f"body.layers.{number}.{module}.weight"
                folded[key] = awq.fold(module, checkpoint[key].double(), name, scales, cfg)
            if name in awq.NORMS:
                key = f"body.layers.{number}.{awq.NORMS[name]}.weight"
                folded[key] = checkpoint[key].double() / draw[name]
    before = Reference(source, torch.float64)
    after = Reference(rewritten(source, tmp_path / "folded", folded), torch.float64)
    x = before.embed_prompt(list(range(30)), None)
    want, got = before.hidden(x), after.hidden(x)
    assert (got - want).norm() < 1e-12 * want.norm()
    assert all(not torch.equal(folded[name], checkpoint[name].double()) for name in folded if "q_proj" in name)


def test_every_matrix_and_the_folded_norms_come_out(outliers, searched):
    quantized, figures = searched
    source = Checkpoint.open(outliers)
    matrices = {name for name in source if name.startswith("body.") and name.endswith("_proj.weight")}
    norms = {name for name in source if name.startswith("body.") and "layernorm" in name}
    assert quantized.keys() == matrices | norms
    for name, value in quantized.items():
        assert tuple(value.shape) == source.info[name].shape
        if name in matrices:
            assert isinstance(value, Grouped) and value.group == 64
            layout.encode(value)  # as AWQ's files hold it
        else:
            assert value.dtype == torch.float32
    assert [f.number for f in figures] == [0, 1]
    assert {name for f in figures for name in f.errors} == matrices


def test_outlier_channels_are_kept_far_better_than_by_rounding(outliers, searched, tmp_path):
    quantized, figures = searched
    for layer in figures:
        for product, (rounded, scaled, clamped) in layer.losses.items():
            assert scaled < 0.6 * rounded, (layer.number, product, layer)
            assert clamped < scaled, (layer.number, product, layer)
    source, want = Checkpoint.open(outliers), logits(outliers)
    plain = {name: layout.quantize(source[name].float(), 64).dequantize()
             for name, value in quantized.items() if isinstance(value, Grouped)}  # fmt: skip
    rounding = divergence(want, logits(rewritten(outliers, tmp_path / "rounded", plain)))
    searching = divergence(want, logits(rewritten(outliers, tmp_path / "searched", numbers(quantized))))
    assert searching < 0.5 * rounding  # 0.35 here


def test_figures_are_of_what_is_stored(outliers, monkeypatch):
    """Without scales what is stored can be held against the source."""

    def no_scales(weights, inputs, group, **heads):
        return Scales(torch.ones(weights[0].shape[1]), None, 3.0, 2.0)

    monkeypatch.setattr(awq, "search_scales", no_scales)
    walked, figures = walk(outliers), []
    quantized = dict(awq.quantize_model(walked, 64, report=figures.append))
    step, source = next(walked.layers(capture=True)), Checkpoint.open(outliers)
    for product, modules in PRODUCTS.items():
        names = [f"body.layers.0.{module}.weight" for module in modules]
        W = torch.cat([source[name].float() for name in names])
        D = torch.cat([quantized[name].dequantize() for name in names]) - W
        share = (walked.weights / walked.weights.sum())[:, None]
        energy = (share * (step.inputs[product] @ W.t()).square()).sum().item()
        loss = (share * (step.inputs[product] @ D.t()).square()).sum().item()
        assert figures[0].losses[product] == pytest.approx((3 / energy, 2 / energy, loss / energy), rel=1e-3)
    error = (D.norm() / W.norm()).item()
    assert figures[0].errors["body.layers.0.mlp.down_proj.weight"] == pytest.approx(error, rel=1e-3)


def test_folded_weights_are_clamped_by_the_inputs_that_they_will_have(outliers, monkeypatch):
    """What they make of these is what the original weights make of the original inputs, group by group."""
    seen = []
    monkeypatch.setattr(awq, "clamp", lambda weight, grams: seen.append((weight, grams)) or weight)
    walked = walk(outliers, CALIBRATION[:2])
    for name, _ in awq.quantize_model(walked, 64):
        if name.endswith("layers.0.mlp.down_proj.weight"):
            break
    folded, grams = (part.double() for part in seen[-1])
    weight = Checkpoint.open(outliers)["body.layers.0.mlp.down_proj.weight"].double()
    inputs = Inputs(next(walked.layers(capture=True)).inputs["down"], walked.weights)

    def energy(weight: torch.Tensor, grams: torch.Tensor) -> torch.Tensor:
        groups = weight.view(256, 16, 64)
        return torch.einsum("ngi,gij,ngj->ng", groups, grams, groups)

    assert not torch.allclose(folded, weight, rtol=0.1)
    torch.testing.assert_close(energy(folded, grams), energy(weight, inputs.grams(64).double()), rtol=1e-3, atol=1e-9)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(outliers, searched):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    quantized, want = searched
    figures: list[awq.Figures] = []
    for name, value in awq.quantize_model(walk(outliers, device="cuda"), 64, report=figures.append):
        got, cpu = numbers({name: value})[name], numbers({name: quantized[name]})[name]
        assert got.device.type == "cpu"
        assert (got - cpu).norm() < 0.05 * cpu.norm()  # half of what rounding does: near ties may fall elsewhere
    for ours, theirs in zip(figures, want, strict=True):
        for product, losses in theirs.losses.items():
            assert ours.losses[product] == pytest.approx(losses, rel=0.02)


def test_a_group_that_does_not_divide_is_refused(outliers):
    with pytest.raises(ValueError, match="groups of 96 do not divide rows of 256"):
        next(awq.quantize_model(walk(outliers, CALIBRATION[:1]), 96))
