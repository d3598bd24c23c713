"""A synthetic model with outlier channels, as trained language models have them.

A few inputs of each product are driven far more strongly than the others, and the rounding of their few weights makes
most of the error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from octavo.tools.make_checkpoint import make_checkpoint


def outlier_checkpoint(folder: Path, strength: float = 24.0, every: int = 48, **options) -> Path:
    """A tiny checkpoint at `folder`. One in `every` channels is `strength` times as strong behind the norms, and half
    that in what v and up give."""
    make_checkpoint(folder, size="tiny", tied_copies=False, **options)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            weight[5::every] *= strength
        elif name.endswith(("v_proj.weight", "up_proj.weight")) and name.startswith("body."):
            weight[7::every] *= strength / 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rewritten(source: Path, folder: Path, changed: dict[str, torch.Tensor]) -> Path:
    """A copy of a checkpoint with other values in some of its tensors, in whatever type these have."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    assert changed.keys() <= weights.keys(), changed.keys() - weights.keys()
    save_file(weights | changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
