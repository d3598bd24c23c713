"""The importance of channels, from its definition."""

from __future__ import annotations

import torch

from octavo.quant.imatrix import collect
from octavo.quant.walk import Walk
from octavo.runtime.checkpoint import Checkpoint

from .outliers import rewritten
from .utterances import utterance


def test_importance_is_the_weighted_mean_square_of_the_inputs(tiny_dir):
    checkpoint, seen = Checkpoint.open(tiny_dir), []
    walk = Walk(checkpoint, [utterance(0, text=30), utterance(1)], torch.device("cpu"), torch.float32)
    importance = collect(walk, lambda done, total: seen.append((done, total)))
    assert importance.keys() == {name for name in checkpoint if name.startswith("body.") and "_proj." in name}
    assert all(values.shape == (checkpoint.info[name].shape[1],) for name, values in importance.items())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (walk.weights < 1).any()
    step = next(walk.layers(capture=True))
    for module, product in (("self_attn.k_proj", "qkv"), ("mlp.down_proj", "down")):
        x = step.inputs[product].double()
        want = (walk.weights.double()[:, None] * x**2).sum(0) / walk.weights.double().sum()
        torch.testing.assert_close(importance[f"body.layers.0.{module}.weight"].double(), want, rtol=1e-5, atol=0)


def test_what_never_got_a_number_has_no_importance(tiny_dir, tmp_path):
    gate = "body.layers.1.mlp.gate_proj.weight"
    source = rewritten(tiny_dir, tmp_path / "mute", {gate: torch.zeros_like(Checkpoint.open(tiny_dir)[gate])})
    walk = Walk(Checkpoint.open(source), [utterance(0)], torch.device("cpu"), torch.float32)
    importance = collect(walk)
    assert "body.layers.1.mlp.down_proj.weight" not in importance and gate in importance
