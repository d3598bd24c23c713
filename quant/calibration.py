"""What the model is asked to say before it is quantized: for calibration, and for the gate that judges the copy."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.runtime.errors import CheckpointError, RequestError

from . import rows, texts
from .recipe import Recipe
from .source import Source, as_text

_JUDGED_SEED = 0  # of the gate: copies of one source are compared on the same speech, whatever calibrated them
LARGE = 1_000_000_000  # values; whoever quantizes such a model on a CPU waits for each row that it speaks
FEW, SHORT = 6, 125  # of the built-in sentences, and rows of each (5 s), where the model is slow
_ROUNDED = ("int8", "fp8", "nf4", "q8_0", "bf16", "fp16")  # by the weights alone


@dataclass(frozen=True)
class Calibration:
    """name: "none", "builtin", or the file's; sentences: none for plain rounding."""

    name: str
    sentences: tuple[str, ...]

    def facts(self, seed: int) -> dict[str, str | int]:
        """What made the rows, without the folders of whoever made them."""
        if not self.sentences:
            return {"sentences": 0}
        digest = hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()
        return {"name": self.name, "sentences": len(self.sentences), "sha256": digest, "seed": seed}


def is_slow(source: Source, device: torch.device) -> bool:
    """Whether it speaks so slowly that a part of the built-in sentences, cut short, must do."""
    return device.type == "cpu" and source.checkpoint.numel > LARGE


def calibration(recipe: Recipe, wanted: str | os.PathLike | None, slow: bool = False) -> Calibration:
    """wanted: "none", "builtin", a text file, or None for what suits the recipe. Raises RequestError."""
    searched = recipe.type == "awq"
    name = os.fspath(wanted) if wanted is not None else "builtin" if searched else "none"
    if name == "none":
        return Calibration(name, ())
    if recipe.type in _ROUNDED:
        raise RequestError(f"{recipe.type} rounds weights as they are and heeds no calibration. Leave --calib out.")
    if searched:
        recipe.searched()  # says now what it refuses
    if name == "builtin":
        return Calibration(name, texts.CALIBRATION[: FEW if slow else None])
    return Calibration(as_text(Path(name).name), tuple(texts.read(name)))


def speak(
    source: Source,
    wanted: Calibration,
    gate: bool,
    device: str,
    seed: int,
    progress: Callable[[str, int, int], None],
    slow: bool = False,
) -> tuple[list[rows.Drawn], list[rows.Drawn]]:
    """What the source says, for calibration and for the gate. Loads it only if one of them is wanted.

    Raises CheckpointError when it says nothing at all.
    """
    judged = texts.GATE[: FEW if slow else None] if gate else ()
    tasks = [(wanted.sentences, seed), (judged, _JUDGED_SEED)]
    total = sum(len(sentences) for sentences, _ in tasks)
    if not total:
        return [], []
    progress("speaking", 0, total)
    drawn: list[list[rows.Drawn]] = []
    before = 0
    with rows.speaker(source.path, device) as engine:
        for sentences, first_seed in tasks:
            told = functools.partial(_told, progress, before, total)
            most = SHORT if slow else rows.MAX_ROWS
            spoken = rows.draw(engine, sentences, max_rows=most, seed=first_seed, progress=told)
            drawn.append([utterance for utterance in spoken if len(utterance.rows)])
            if sentences and not drawn[-1]:
                raise CheckpointError(
                    f"{source.path} speaks none of {len(sentences)} sentences. Check it with octavo say."
                )
            before += len(sentences)
    return drawn[0], drawn[1]


def _told(progress: Callable[[str, int, int], None], before: int, total: int, done: int, _: int) -> None:
    progress("speaking", before + done, total)
