"""Where a quantized checkpoint goes: checked before any work, hidden until it is complete, gone if it never is."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from octavo.runtime.errors import RequestError
from octavo.runtime.files import write_errors


class Output:
    """A folder, or a .gguf file, at `path`. Inside the context, `partial` is where to write it.

    `commit` gives it its name; leaving without that removes it. With `force`, `commit` replaces what stands there.
    Raises RequestError when it cannot go there: something exists, the place cannot be written, the name is no file's.
    """

    def __init__(self, path: str | os.PathLike, read: Collection[Path], *, is_file: bool, force: bool = False):
        """read: the files and folders that are read meanwhile."""
        if not os.fspath(path):
            raise RequestError("The output has no name. Give it one.")
        self.path, self._force = Path(path), force
        self._target = Path(os.path.realpath(path))  # a symbolic link stays one: what it points to is replaced
        self._check_name(is_file)
        self._check_place(read, is_file)
        self._hidden = self._target.with_name(f".octavo-{secrets.token_hex(8)}.tmp")
        self.partial = self._hidden / self._target.name

    @property
    def failed_path(self) -> Path:
        """Where it goes if it fails the gate: out.failed.gguf, folder.failed; beside what a symbolic link points to."""
        is_target = self.path.name and self.path.parent.resolve() / self.path.name == self._target
        return _failed(self.path if is_target else self._target)

    def require_space(self, nbytes: int) -> None:
        """Raises RequestError unless the disk has room for them."""
        free = shutil.disk_usage(self._target.parent).free
        if nbytes > free:
            raise RequestError(
                f"{self.path} takes {_size(nbytes)}, and its disk has {_size(free)} free. Make room, or write "
                "elsewhere."
            )

    def commit(self, passed: bool = True) -> Path:
        """Gives what was written its name, the failed one unless it `passed`, and returns that."""
        target, old = (self._target if passed else _failed(self._target)), self._hidden / "replaced"
        with write_errors(self.path):
            if target.is_dir():  # a folder is not replaced in one step: this one comes back if the second step fails
                os.replace(target, old)
            try:
                os.replace(self.partial, target)
            except BaseException:
                if old.exists():
                    os.replace(old, target)
                raise
        return self.path if passed else self.failed_path

    def __enter__(self) -> Self:
        with write_errors(self.path):
            self._hidden.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)

    def _check_name(self, is_file: bool) -> None:
        if is_file and self.path.suffix != ".gguf":
            raise RequestError(f"{self.path} is no name for a GGUF file. Use one that ends in .gguf.")
        if not is_file and self.path.suffix in (".gguf", ".safetensors"):
            raise RequestError(
                f"{self.path} will be a folder with config.json beside the weights. Leave the suffix out."
            )

    def _check_place(self, read: Collection[Path], is_file: bool) -> None:
        taken = {place for path in read for place in (path.resolve(), *path.resolve().parents)}
        if not taken.isdisjoint((self._target, _failed(self._target))):
            raise RequestError(
                f"{self.path} is read as well: writing it would lose what it holds. Choose another name."
            )
        with write_errors(self.path):
            os.stat(self._target.parent)
            places = ((self.path, self._target), (self.failed_path, _failed(self._target)))
            existing = [(label, path) for label, path in places if path.exists()]
        for label, path in existing:
            if path.is_dir() == is_file:
                raise RequestError(f"{label} is a {'folder' if is_file else 'file'}. Choose another name.")
            if not self._force:
                raise RequestError(
                    f"{label} exists already. Remove it, choose another name, or replace it with --force."
                )
            if not is_file and not _is_checkpoint(path):
                raise RequestError(
                    f"{label} holds other things than a checkpoint: it is not replaced. Choose another name."
                )


def _failed(path: Path) -> Path:
    return path.with_name(f"{path.stem}.failed{path.suffix}" if path.suffix == ".gguf" else f"{path.name}.failed")


def _is_checkpoint(folder: Path) -> bool:
    """Empty, or files only and among them what makes a checkpoint: then --force may remove it."""
    content = list(folder.iterdir())
    return not content or ((folder / "config.json").is_file() and all(entry.is_file() for entry in content))


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
