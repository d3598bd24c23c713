"""The checkpoint that is quantized: opened, compared with what octavo knows, and looked through for broken numbers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.errors import CheckpointError
from octavo.runtime.hub import resolve
from octavo.runtime.models import check_layout
from octavo.runtime.tensor_names import AUDIO_HEAD, AUDIO_TABLE, TEXT_EMBEDDING, TEXT_HEAD
from octavo.runtime.tokenizer import Tokenizer

_PIECE = 1 << 24  # values looked at together
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """path: the folder or file; name: what to call it in the output, without the user's folders; copies: tensors that
    repeat another one; notes: sentences for the user."""

    path: Path
    name: str
    checkpoint: Checkpoint
    config: ModelConfig
    copies: frozenset[str]
    notes: tuple[str, ...]

    @property
    def files(self) -> set[Path]:
        """What is read, and may not be written over."""
        return {self.path, *(stored.shard for stored in self.checkpoint.info.values())}

    def facts(self) -> dict[str, str]:
        """What tells it from others: its name, its revision if it comes from the hub, and a hash of its headers."""
        layout = hashlib.sha256()
        for name, stored in sorted(self.checkpoint.info.items()):
            layout.update(f"{name} {stored.kind} {stored.shape}\n".encode())
        facts = {"name": self.name, "layout_sha256": layout.hexdigest(), "bytes": str(self.checkpoint.nbytes)}
        if _REVISION.fullmatch(self.path.name):  # the cache's folders are named by revision
            facts["revision"] = self.path.name
        return facts


def open_source(model: str | os.PathLike) -> Source:
    """model: a folder, a .gguf file, or a model id in the local cache. Reads headers, and the tied copies.

    Raises CheckpointError for all that loading the model would refuse.
    """
    path = resolve(os.fspath(model))
    checkpoint = Checkpoint.open(path)
    config = ModelConfig.from_checkpoint(checkpoint.config)
    check_layout(checkpoint, config)
    Tokenizer.parse(checkpoint.tokenizer_bytes(), str(path))
    copies, notes = _copies(checkpoint, config)
    name = os.fspath(model) if not Path(model).expanduser().exists() else path.resolve().name
    return Source(path, as_text(name), checkpoint, config, copies, notes)


def as_text(name: str) -> str:
    """A file's name for a file to hold, which wants UTF-8: names need not be that."""
    return os.fsencode(name).decode(errors="replace")


def check_finite(
    checkpoint: Checkpoint, without: frozenset[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Raises CheckpointError, naming the tensor, if any value is NaN or infinite. progress(bytes read, bytes in all)"""
    names = [name for name in checkpoint if name not in without]
    total, done = sum(checkpoint.info[name].nbytes for name in names), 0
    for name in names:
        for piece in checkpoint[name].reshape(-1).split(_PIECE):
            if piece.numel() and not torch.stack(piece.aminmax()).isfinite().all():  # NaN is the least and the most
                raise CheckpointError(f"{name} holds NaN or infinite values. Download the checkpoint again.")
            checkpoint.release()  # a large table is read once, and never held
        done += checkpoint.info[name].nbytes
        progress(done, total)


def _copies(checkpoint: Checkpoint, config: ModelConfig) -> tuple[frozenset[str], tuple[str, ...]]:
    """The heads that repeat a table, byte by byte; those that should and do not are kept, with a note."""
    copies, notes = set(), []
    for head, table in ((TEXT_HEAD, TEXT_EMBEDDING), (AUDIO_HEAD, AUDIO_TABLE)):
        if head not in checkpoint or (head == AUDIO_HEAD and not config.tied_audio):
            continue
        if _equal(checkpoint, head, table):
            copies.add(head)
        else:
            notes.append(f"{head} differs from {table}, whose copy it should be: it is kept.")
    return frozenset(copies), tuple(notes)


def _equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    if checkpoint.info[a].kind != checkpoint.info[b].kind or checkpoint.info[a].shape != checkpoint.info[b].shape:
        return False
    pieces = (checkpoint[name].reshape(-1).view(torch.uint8).split(_PIECE) for name in (a, b))
    for x, y in zip(*pieces, strict=True):
        if not torch.equal(x, y):
            return False
        checkpoint.release()
    return True
