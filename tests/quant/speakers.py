"""A synthetic model that ends its speech by itself, and copies of it with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.delay import EOC
from octavo.runtime.tensor_names import AUDIO_HEAD, AUDIO_TABLE, TEXT_EMBEDDING
from octavo.tools.make_checkpoint import make_checkpoint

from .outliers import rewritten

CONSTANT = 0  # the channel of the hidden states that says the same in every row, so that a logit can have a bias
EOC_BIAS = 0.42  # makes one row in thirty or so an end


def speaker_checkpoint(folder: Path) -> Path:
    """A tiny checkpoint with a head of its own. Its layers add little to the hidden states, as those of trained models
    do, and its codes are decided rather than drawn from noise."""
    plain = make_checkpoint(folder / "plain", size="tiny", seed=0, untied_audio=True, tied_copies=False)
    source = Checkpoint.open(plain)
    changed = {"body.norm.weight": source["body.norm.weight"] * 3}
    for name in source:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            changed[name] = source[name] * 0.045
            changed[name][CONSTANT] = 0
    for name, value in ((TEXT_EMBEDDING, 1.0), (AUDIO_TABLE, 1 / 8)):
        changed[name] = source[name].clone()
        changed[name][:, CONSTANT] = value
    changed[AUDIO_HEAD] = source[AUDIO_HEAD].clone()
    changed[AUDIO_HEAD][EOC, CONSTANT] = EOC_BIAS
    return rewritten(plain, folder / "speaker", changed)


def rounded(source: Path, folder: Path, bits: int, of: Callable[[str], bool] = lambda name: True) -> Path:
    """The body's matrices rounded to so many bits, in groups of 32, and stored as they were."""
    checkpoint = Checkpoint.open(source)
    matrices = [name for name in checkpoint if name.endswith("_proj.weight") and name.startswith("body.") and of(name)]
    return rewritten(source, folder, {name: _round(checkpoint[name], bits) for name in matrices})


def hasty(source: Path, folder: Path, raised: float, constant: float) -> Path:
    """The logit that ends the speech is higher by `raised`. constant: the final hidden states' constant channel."""
    head = Checkpoint.open(source)[AUDIO_HEAD].clone()
    head[EOC, CONSTANT] += raised / constant
    return rewritten(source, folder, {AUDIO_HEAD: head})


def _round(weight: torch.Tensor, bits: int) -> torch.Tensor:
    groups = weight.float().view(len(weight), -1, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-9)
    return (((groups - low) / step).round() * step + low).view_as(weight).to(weight.dtype)
