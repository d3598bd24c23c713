"""A model id, a folder or a .gguf file -> where it is.

Reads huggingface_hub's local cache; touches the network only when told to.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import CheckpointError

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["*.json", "*.safetensors", "*.md", "LICENSE*"]  # what a checkpoint is made of; no code, no other formats


def resolve(model: str, download: bool = False) -> Path:
    """Where `model` is: an existing folder or .gguf file is itself, `org/name` is looked up in the local cache.

    With `download`, `org/name` is brought up to date from the hub first. Raises CheckpointError.
    """
    folder = Path(model).expanduser()
    if model and (folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file())):
        return folder
    if not _MODEL_ID.fullmatch(model) or folder.suffix == ".gguf":
        raise CheckpointError(
            f"{model!r} is not a folder, nor a .gguf file. Give one of them, or a model id like org/name."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(model, local_files_only=not download, allow_patterns=_FILES))
    except LocalEntryNotFoundError as error:
        if download:
            raise CheckpointError(
                f"{model} cannot be downloaded: the hub is out of reach. Check the network."
            ) from error
        raise CheckpointError(_not_here(model)) from error
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: an id the hub's own rules forbid
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{model} cannot be downloaded: {reason[0].rstrip('.')}. Check the id and the network."
        ) from error
    if not (found / "config.json").is_file():
        raise CheckpointError(_not_here(model) if not download else f"{model} on the hub holds no config.json.")
    return found


def _not_here(model: str) -> str:
    return (
        f"{model} is neither a folder nor wholly in the local Hugging Face cache. "
        "Check the path, or allow the download (--download)."
    )
