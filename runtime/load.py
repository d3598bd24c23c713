"""From a checkpoint folder to what an engine is made of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .checkpoint import Checkpoint
from .codec import Codec
from .config import EngineConfig
from .devices import pick_device, pick_dtype
from .errors import CapacityError, CheckpointError, RequestError
from .hub import resolve
from .memory_plan import MemoryPlan, plan_for
from .models import CODEC_PREFIX, Model, load_model
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Parts:
    model: Model
    tokenizer: Tokenizer
    codec: Codec
    config: EngineConfig


def load_parts(
    path: str | os.PathLike,
    device: str,
    dtype: str,
    *,
    download: bool,
    progress: Callable[[int, int], None],
    vram: str | int | float | None,
    planned: Callable[[MemoryPlan], None],
    options: dict[str, int | bool],
) -> Parts:
    """The arguments are those of `Engine.load`, and so are the errors."""
    if unknown := options.keys() - {field.name for field in dataclasses.fields(EngineConfig)}:
        raise RequestError(f"The engine has no option {', '.join(sorted(unknown))}.")
    config = EngineConfig(**options)  # type: ignore[arg-type]
    checkpoint = Checkpoint.open(resolve(os.fspath(path), download))
    target = encoder_device = pick_device(device)
    if vram is None:
        number_type = pick_dtype(dtype, target, checkpoint)
    else:
        plan = plan_for(checkpoint, target, dtype, vram, config, options.keys())
        number_type, config = plan.dtype, plan.config
        encoder_device = target if plan.encoder else torch.device("cpu")
        planned(plan)
    tokenizer = Tokenizer.parse(checkpoint.tokenizer_bytes(), f"tokenizer.json of {checkpoint.path}")
    try:
        codec = Codec.load(checkpoint.weights(CODEC_PREFIX), target, encoder_device=encoder_device)
        model = load_model(checkpoint, target, number_type, progress, config.deterministic)
        checkpoint.release()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise too_large(target, checkpoint.nbytes) from error
    if codec.config.codebooks != model.cfg.num_codebooks:
        raise CheckpointError(
            f"The codec has {codec.config.codebooks} codebooks, the language model {model.cfg.num_codebooks}: "
            "the checkpoint is damaged. Download it again."
        )
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise CheckpointError(
            f"tokenizer.json has {tokenizer.vocab_size} tokens and the text embedding {model.cfg.vocab_size} "
            "rows: they do not belong together. Download the checkpoint again."
        )
    config = dataclasses.replace(config, max_context=min(config.max_context, model.cfg.max_context))
    return Parts(model, tokenizer, codec, config)


def too_large(device: torch.device, on_disk: int | None = None) -> CapacityError:
    disk = f" (on disk it has {on_disk / 1e9:.1f} GB)" if on_disk else ""
    return CapacityError(
        f"The model and its KV cache do not fit into the memory of {device}{disk}. Close other programs, lower kv_rows "
        "or max_batch, or use another device; vram=... plans what fits."
    )
