"""Write a synthetic checkpoint: `python -m octavo.tools.make_checkpoint OUT --size tiny --seed 0`.

The weights are random, so it makes noise, not speech; names, shapes, files and quirks are those of the real one.

Values are cut from one block of normal numbers, per tensor at an offset drawn from (seed, name), then scaled and
shifted. Fresh normals for 4.6 billion values would take minutes of arithmetic; this is bound by the disk. The block's
length is prime, so the rows of a matrix never repeat. Tensors are streamed: memory does not grow with the model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from octavo.runtime.errors import CheckpointError, OctavoError

from .inventory import CODECS, MODELS, CodecWidths, ModelWidths, Spec, inventory
from .layout import DTYPES, config, header

_BLOCK = 1_048_573  # normals; prime
_CODEC_OPTION = "codec_"  # prefix of the codec's widths among the overrides: codec_decoder=32

_README = """# A synthetic checkpoint

The weights in this folder are **random**. It has the layout of a Higgs v3 checkpoint and goes the same way through the
runtime, but what comes out is noise, not speech. Made by `python -m octavo.tools.make_checkpoint` with {made}.
"""


def make_checkpoint(
    out: str | os.PathLike,
    size: str = "tiny",
    seed: int = 0,
    *,
    codec: str | None = None,
    shards: int = 1,
    index: bool = True,
    tied_copies: bool = True,
    untied_audio: bool = False,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "bf16",
    progress: bool = False,
    **widths: int,
) -> Path:
    """Writes a checkpoint folder at `out` (absent or empty so far) and returns it. Same arguments, same bytes.

    size: "tiny", "small" or "4b"; codec: "tiny" or "real" (default: tiny for tiny, else real). `widths` overrides any
    field of ModelWidths, and of CodecWidths with `codec_` in front. `tied_copies` adds the physical `tied.head.*` that
    the index omits; `untied_audio` gives the audio head values of its own (and unties it in the config). `tokenizer`
    is a tokenizer.json to copy instead of the byte tokenizer. Raises CheckpointError; leaves nothing behind then.
    """
    out = Path(out)
    model_widths, codec_widths = _widths(size, codec, widths)
    if seed < 0:
        raise CheckpointError(f"seed is {seed}. Use a whole number, 0 or more.")
    if dtype not in DTYPES or shards < 1:
        raise CheckpointError(
            f"dtype {dtype!r} with {shards} shards cannot be written. Use bf16 or fp32, and 1 or more."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already. Remove it or choose another folder.")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        needed = _write_tokenizer(partial / "tokenizer.json", tokenizer, 151643 if size == "4b" else 256)
        vocab = model_widths.vocab or math.ceil(needed / 64) * 64
        if vocab < needed:
            raise CheckpointError(f"vocab {vocab} is too small for the tokenizer. Use {needed} or more.")
        model_widths = replace(model_widths, vocab=vocab)
        specs = inventory(model_widths, codec_widths, tied_copies, untied_audio)
        _require_space(partial, sum(spec.numel for spec in specs) * DTYPES[dtype][0].itemsize)
        _write_json(partial / "config.json", config(model_widths, untied_audio, DTYPES[dtype][2]))
        tokenizer_config = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "extra_special_tokens": []}
        _write_json(partial / "tokenizer_config.json", tokenizer_config)
        _write_shards(partial, specs, seed, dtype, shards, index, progress)
        made = {"size": size, "seed": seed, **asdict(model_widths), "codec": asdict(codec_widths)}
        (partial / "README.md").write_text(_README.format(made=json.dumps(made)), encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror}. Free some space or choose another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def values(spec: Spec, seed: int, block: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of one tensor, in pieces no longer than the block of normals they are cut from."""
    start = zlib.crc32(f"{seed}:{spec.like or spec.name}".encode()) % len(block)
    turned = block if spec.numel >= len(block) else torch.cat((block[start:], block[: spec.numel]))[: spec.numel]
    scaled = turned.mul(spec.std).add_(spec.mean).clamp_(spec.low, spec.high).to(dtype)
    raw = scaled.view(torch.uint8).numpy().data
    left, at = spec.numel * dtype.itemsize, 0
    if spec.numel >= len(block):
        at = start * dtype.itemsize
    while left:
        piece = raw[at : at + left]
        yield piece
        left, at = left - len(piece), 0


def _write_shards(
    folder: Path, specs: list[Spec], seed: int, dtype: str, shards: int, index: bool, progress: bool
) -> None:
    block = torch.from_numpy(np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32))
    itemsize = DTYPES[dtype][0].itemsize
    total = sum(spec.numel for spec in specs) * itemsize
    weight_map: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"writing {folder.parent}", disable=not progress) as bar:
        for n, part in enumerate(_split(specs, shards)):
            name = "model.safetensors" if shards == 1 else f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
            weight_map |= {spec.name: name for spec in part if spec.like is None}
            with open(folder / name, "wb") as file:
                file.write(header(part, dtype))
                for spec in part:
                    for piece in values(spec, seed, block, DTYPES[dtype][0]):
                        file.write(piece)
                        bar.update(len(piece))
    if index:
        # As published: the tied copies lie in the file, the index does not know them.
        indexed = sum(spec.numel for spec in specs if spec.like is None) * itemsize
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": indexed}, "weight_map": weight_map}
        )


def _split(specs: list[Spec], shards: int) -> list[list[Spec]]:
    """Runs of tensors of about equal size, none of them empty."""
    if shards > len(specs):
        raise CheckpointError(f"{len(specs)} tensors cannot fill {shards} shards. Ask for fewer.")
    total, parts, seen = sum(spec.numel for spec in specs), [[specs[0]]], specs[0].numel
    for left, spec in zip(range(len(specs) - 1, 0, -1), specs[1:], strict=True):
        wanted = shards - len(parts)
        if wanted and (seen >= total * len(parts) / shards or left == wanted):
            parts.append([])
        parts[-1].append(spec)
        seen += spec.numel
    return parts


def _widths(size: str, codec: str | None, overrides: dict[str, int]) -> tuple[ModelWidths, CodecWidths]:
    if size not in MODELS:
        raise CheckpointError(f"size {size!r} is unknown. Use one of {', '.join(MODELS)}.")
    codec = codec or ("tiny" if size == "tiny" else "real")
    if codec not in CODECS:
        raise CheckpointError(f"codec {codec!r} is unknown. Use one of {', '.join(CODECS)}.")
    of_codec = {k.removeprefix(_CODEC_OPTION): v for k, v in overrides.items() if k.startswith(_CODEC_OPTION)}
    of_model = {k: v for k, v in overrides.items() if not k.startswith(_CODEC_OPTION)}
    model, c = replace(MODELS[size], **of_model), replace(CODECS[codec], **of_codec)
    if any(value < 1 for value in overrides.values()):
        raise CheckpointError("A width is less than 1. Every width counts something.")
    if model.heads % model.kv_heads or model.head_dim % 2:
        raise CheckpointError("heads must be a multiple of kv_heads, and head_dim even.")
    if c.decoder % 32 or c.semantic % 64:
        raise CheckpointError("The codec's decoder width must be a multiple of 32 and its semantic width of 64.")
    return model, c


def _write_tokenizer(path: Path, source: str | os.PathLike | None, base_vocab: int) -> int:
    """Writes tokenizer.json and returns how many rows its ids need."""
    from tokenizers import Tokenizer

    if source is None:
        from octavo.runtime.tokenizer import build_byte_tokenizer

        tokenizer = build_byte_tokenizer(base_vocab)
    else:
        try:
            tokenizer = Tokenizer.from_file(os.fspath(source))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{source} is not a tokenizer.json ({error}). Give another file.") from error
    tokenizer.save(str(path))
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(f"The checkpoint needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free.")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m octavo.tools.make_checkpoint", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--size", default="tiny", choices=list(MODELS), help="default: tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", choices=list(CODECS), help="default: tiny for tiny, real for small and 4b")
    parser.add_argument("--shards", type=int, default=1)
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--index", action=yes_or_no, default=True, help="write model.safetensors.index.json")
    parser.add_argument("--tied-copies", action=yes_or_no, default=True, help="write the physical tied.head.*")
    parser.add_argument("--untied-audio", action="store_true", help="an audio head with values of its own")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json to copy (default: bytes and the added tokens)"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    group = parser.add_argument_group("dimensions (default: those of the size)")
    for prefix, kind in (("", ModelWidths), (_CODEC_OPTION, CodecWidths)):
        for field in fields(kind):
            group.add_argument(
                "--" + (prefix + field.name).replace("_", "-"), type=int, metavar="N", default=argparse.SUPPRESS
            )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = vars(_parser().parse_args(argv))
    try:
        out = make_checkpoint(options.pop("out"), progress=sys.stderr.isatty(), **options)
    except OctavoError as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{out}: random weights in the published layout; what they make is noise, not speech.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
