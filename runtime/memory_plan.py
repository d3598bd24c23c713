"""The memory plan: before anything is loaded, how much an engine may hold so that it stays within a budget.

What the user set stays as it is; the rest is chosen. First comes one request that could be any piece of a long text
with a long voice, then a few at once, then room to encode recordings on the device, then as many requests as fit. More
memory never gives less. If not even the first fits, or what was set does not, a sentence says what would.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint
from .codec.config import CodecConfig
from .config import EngineConfig, ModelConfig, plain
from .devices import pick_dtype
from .errors import CapacityError, RequestError
from .memory_parts import CUDA_CONTEXT, memory_parts
from .models import CODEC_PREFIX
from .packed_bytes import body_bytes

# Rows that a request reserves: 160 of a prompt with a voice of 4 s, and 440 that a sentence of 100 characters may take.
TYPICAL_ROWS = 600
# One request's: 30 s of a voice with its transcript, and the longest piece of a text in small letters.
LEAST_ROWS = 2048
FEW = 4  # requests at once, before the encoder gets its share
MOST = {"cuda": 256, "cpu": 16}  # requests at once: beyond, a row costs as much more as it gives
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class MemoryPlan:
    """`config` is what the engine is to be made with; `parts` what it then takes, in bytes."""

    device: torch.device
    dtype: torch.dtype
    budget: int
    config: EngineConfig
    encoder: bool  # recordings are encoded on the device; else on the host
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def max_batch(self) -> int:
        return self.config.max_batch

    @property
    def kv_rows(self) -> int:
        return self.config.kv_rows

    @property
    def summary(self) -> str:
        return f"{self.max_batch} request{'s' * (self.max_batch > 1)} at once, {self.kv_rows:,} rows of KV cache"

    def __str__(self) -> str:
        lines = [f"  {name:<20}{size(value):>10}" for name, value in self.parts.items() if value]
        where = "" if self.encoder else "; recordings are encoded on the host"
        return "\n".join([
            f"{NAMES[self.dtype]} on {self.device}, within {size(self.budget)}:",
            *lines,
            f"  {'in all':<20}{size(self.total):>10}",
            self.summary + where,
        ])  # fmt: skip


def parse_size(text: str | int | float, total: int) -> int:
    """Bytes: `8GiB`, `7500 MB`, `8000000000`, or a share of `total`: `0.8`, `80%`. Raises RequestError."""
    value = plain(text)
    written = "" if isinstance(value, bool) else str(value).strip().lower()
    if found := re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmg]?i?b|%|)", written):
        number, unit = float(found[1]), found[2]
        if unit == "%" or (unit == "" and number <= 1):
            share = number / 100 if unit == "%" else number
            nbytes = share * total if share <= 1 else 0
        else:
            nbytes = number * UNITS.get(unit, 0) if unit or number.is_integer() else 0
        if nbytes >= 1:
            return int(nbytes)
    raise RequestError(
        f"{text!r} is no amount of memory. Give one like 8GiB, 7500MB or a number of bytes, or a share of the device's "
        "memory: 0.8 or 80%."
    )


def size(nbytes: int) -> str:
    """For people, and for `parse_size`; rounded up."""
    if nbytes < 2**30:
        return f"{math.ceil(nbytes / 2**20)} MiB"
    return f"{math.ceil(nbytes / 2**30 * 100) / 100:.2f} GiB"


def device_memory(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of a GPU, or of this process's machine or container."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, min(total, free + CUDA_CONTEXT)  # to ask makes a context, which the plan has counted
    total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        entries = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(entries["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip() != "max":
        total = min(total, int(limit.read_text()))
        free = min(free, total - int(limit.with_name("memory.current").read_text()))
    return total, free


def plan_for(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str,
    vram: str | int | float,
    config: EngineConfig,
    keep: Collection[str] = (),
) -> MemoryPlan:
    """The plan for a checkpoint, from its headers alone. vram: as `parse_size` takes it; dtype: as `pick_dtype` does.

    Raises RequestError, CheckpointError, and CapacityError: too little, or more than is free.
    """
    total, free = device_memory(device)
    budget = parse_size(vram, total)
    if budget > free:
        raise CapacityError(
            f"{size(budget)} of {device} are asked for, and of its {size(total)} only {free / 2**30:.2f} GiB are free. "
            "Close other programs, or ask for less."
        )
    number_type = pick_dtype(dtype, device, checkpoint)
    # What is half of the memory elsewhere is half of the budget here.
    if dtype == "auto" and 4 * checkpoint.numel > budget / 2:
        number_type = torch.bfloat16
    model = ModelConfig.from_checkpoint(checkpoint.config)
    codec = CodecConfig.from_weights(checkpoint.weights(CODEC_PREFIX))
    body = body_bytes(checkpoint, model, device) if checkpoint.quantization else None
    return plan(model, codec, number_type, device, budget, config, keep, body=body)


def plan(
    model: ModelConfig,
    codec: CodecConfig,
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    config: EngineConfig | None = None,
    keep: Collection[str] = (),
    encoder: bool | None = None,
    body: Callable[[torch.dtype], int] | None = None,
) -> MemoryPlan:
    """Chooses max_batch and kv_rows, except those named in `keep`, which are taken from `config`, as all the rest is.

    encoder: whether recordings are encoded on the device; None: if there is room. body: `packed_bytes.body_bytes` of a
    quantized model. Raises CapacityError.
    """
    config = config or EngineConfig()
    config = dataclasses.replace(config, max_context=min(config.max_context, model.max_context))
    page, context = config.page_size, config.max_context
    encoder = encoder if codec.encoder else False

    def rows_for(batch: int) -> int:
        rows = max(min(LEAST_ROWS, context), batch * min(TYPICAL_ROWS, context))
        return config.kv_rows if "kv_rows" in keep else -(-rows // page) * page

    def make(batch: int, rows: int, encoder: bool, dtype: torch.dtype = dtype, **others: Any) -> MemoryPlan:
        chosen = dataclasses.replace(config, max_batch=batch, kv_rows=rows, **others)
        parts = memory_parts(model, codec, dtype, device, chosen, encoder, body(dtype) if body else None)
        return MemoryPlan(device, dtype, budget, chosen, encoder, parts)

    def fits(batch: int, encoder: bool, rows: int = 0) -> bool:
        return make(batch, rows or rows_for(batch), encoder).total <= budget

    batches = range(1, MOST[device.type] + 1)
    if "max_batch" in keep:
        batches = range(config.max_batch, config.max_batch + 1)
    elif "kv_rows" in keep:
        batches = range(1, min(batches[-1], max(1, config.kv_rows // TYPICAL_ROWS)) + 1)
    if not fits(batches[0], bool(encoder)):
        raise CapacityError(_refusal(make(batches[0], rows_for(batches[0]), bool(encoder)), keep, rows_for, make))
    most_rows = batches[-1] * context
    if encoder is None:
        few = batches[:FEW][-1]
        encoder = fits(few, True)
        if not encoder:  # what more memory is there waits for the encoder
            batches, most_rows = range(batches[0], few + 1), rows_for(few)
    batch = _last(batches, lambda batch: fits(batch, encoder))
    rows = rows_for(batch)
    if "kv_rows" not in keep:
        if batch < batches[-1]:
            most_rows = rows_for(batch + 1)  # so that the next request costs nobody rows
        rows = _last(range(rows, max(rows, most_rows) + 1, page), lambda rows: fits(batch, encoder, rows))
    return make(batch, rows, encoder)


def _last(values: range, good: Callable[[int], bool]) -> int:
    """The last of the values for which it is good; it is so for the first, and not behind one for which it is not."""
    return values[bisect_right(values, False, key=lambda value: not good(value)) - 1]


def _refusal(
    least: MemoryPlan, keep: Collection[str], rows_for: Callable[[int], int], make: Callable[..., MemoryPlan]
) -> str:
    """least: the smallest plan with what was set. Names what would fit."""
    options = {"batch": least.max_batch, "rows": least.kv_rows, "encoder": least.encoder}

    def fits(**others: Any) -> bool:
        return make(**options | others).total <= least.budget

    advice = [f"Allow {size(least.total)}"]
    if "max_batch" in keep and fits(batch=1, rows=rows_for(1)):
        most = _last(range(1, least.max_batch), lambda batch: fits(batch=batch, rows=rows_for(batch)))
        advice.append(f"lower max_batch to {most}")
    fewest = min(TYPICAL_ROWS, least.config.max_context)
    if fewest < least.kv_rows and fits(rows=fewest):
        advice.append(f"lower kv_rows to {_last(range(fewest, least.kv_rows), lambda rows: fits(rows=rows))}")
    fewest, given = 256, least.config.prefill_rows
    if fewest < given and fits(prefill_rows=fewest):
        advice.append(f"lower prefill_rows to {_last(range(fewest, given), lambda rows: fits(prefill_rows=rows))}")
    if least.dtype == torch.float32 and fits(dtype=torch.bfloat16):
        advice.append("load it in bf16")
    if least.encoder and fits(encoder=False):
        advice.append("encode recordings on the host")
    parts = sorted(least.parts.items(), key=lambda part: -part[1])[:3]
    return (
        f"{size(least.total)} are needed on {least.device} in {NAMES[least.dtype]} "
        f"({', '.join(f'{name} {size(value)}' for name, value in parts)}, ...), and {size(least.budget)} are allowed. "
        f"{', or '.join(advice)}."
    )
