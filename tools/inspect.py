"""Say what is in a checkpoint or a voice file, without reading the weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .inventory import AUDIO_HEAD, AUDIO_TABLE, CODEC, TEXT_TABLE
from .voices import voice_text

if TYPE_CHECKING:
    from octavo.runtime.checkpoint import Checkpoint

_PARTS = {  # first match counts
    "language model": "body.",
    "text table": TEXT_TABLE,
    "audio table": AUDIO_TABLE,
    "codec": CODEC,
    "tied copies": "tied.head.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL|VOICE", help="checkpoint folder or .gguf file, model id in the local cache, voice file"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--tensors", action="store_true", help="list every tensor: name, dtype, shape, shard")
    parser.add_argument(
        "--verify", action="store_true", help="read it all, and compare with the hashes that `octavo quantize` stored"
    )


def run(args: argparse.Namespace) -> int:
    if Path(args.model).is_file() and Path(args.model).suffix != ".gguf":
        from octavo.runtime.errors import RequestError
        from octavo.runtime.voice import Voice

        if args.verify:
            raise RequestError(f"{args.model} is no checkpoint: only these hold hashes. Leave --verify out.")
        print(voice_text(Voice.load(args.model), args.json))
        return 0
    from octavo.runtime.checkpoint import Checkpoint
    from octavo.runtime.hub import resolve
    from octavo.runtime.verify import provenance, verify

    checkpoint = Checkpoint.open(resolve(args.model))
    facts = describe(checkpoint)
    if made := provenance(checkpoint):
        facts["provenance"] = made
    if args.verify:
        facts["verified"] = verify(checkpoint)
    if args.tensors:
        facts["tensors"] = {
            name: {"dtype": info.kind, "shape": list(info.shape), "shard": info.shard.name}
            for name, info in sorted(checkpoint.info.items())
        }
    print(json.dumps(facts, indent=2) if args.json else _text(facts))
    return 0


def describe(checkpoint: Checkpoint) -> dict:
    """Facts about a checkpoint from its config and headers: counts in values, sizes in bytes.

    Raises CheckpointError for whatever loading would refuse, as far as headers tell.
    """
    from octavo.runtime.codec.config import CodecConfig
    from octavo.runtime.codec.layout import decoder_layout, encoder_layout
    from octavo.runtime.config import ModelConfig
    from octavo.runtime.models import check_layout
    from octavo.runtime.tensor_names import BODY

    config = ModelConfig.from_checkpoint(checkpoint.config)
    check_layout(checkpoint, config)
    weights = checkpoint.weights(CODEC)
    codec = CodecConfig.from_weights(weights)
    for name, shape in (decoder_layout(codec) | (encoder_layout(codec) if codec.encoder else {})).items():
        weights.check(name, *shape)
    parts = {part: {"tensors": 0, "parameters": 0, "bytes": 0} for part in _PARTS}
    dtypes: Counter[str] = Counter()
    for name, info in checkpoint.info.items():
        untied = name == AUDIO_HEAD and not config.tied_audio
        part = "audio head" if untied else next(p for p, prefix in _PARTS.items() if name.startswith(prefix))
        entry = parts.setdefault(part, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += info.numel
        entry["bytes"] += info.nbytes
        dtypes[info.kind] += 1
    head = parts["audio head" if "audio head" in parts else "audio table"]
    per_row = {key: parts["language model"][key] + head[key] for key in ("parameters", "bytes")}
    matrix = checkpoint.info[f"{BODY}0.self_attn.q_proj.weight"].dtype  # norms are often fp32 beside 16 bits
    itemsize = matrix.itemsize if matrix else 2  # quantized: computed in 16 bits
    kv = 2 * config.num_layers * config.kv_size * itemsize
    return {
        "folder": str(checkpoint.path),
        "config": dataclasses.asdict(config),
        "shards": sorted({info.shard.name for info in checkpoint.info.values()}),
        "tensor_count": len(checkpoint),
        "parameters": sum(entry["parameters"] for entry in parts.values()),
        "bytes": checkpoint.nbytes,
        "dtypes": dict(dtypes),
        "parts": {part: entry for part, entry in parts.items() if entry["tensors"]},
        "codec": dataclasses.asdict(codec),
        "kv_cache": {"bytes_per_row": kv, "rows": config.max_context, "bytes": kv * config.max_context},
        "weights_per_row": per_row,
    }


def _text(facts: dict) -> str:
    c, kv, row = facts["config"], facts["kv_cache"], facts["weights_per_row"]
    heads = f"{c['num_heads']}/{c['num_kv_heads']} heads of {c['head_dim']}"
    dtypes = ", ".join(f"{count} {name}" for name, count in facts["dtypes"].items())
    shards = f"{len(facts['shards'])} shard{'s' * (len(facts['shards']) > 1)}"
    lines = [
        facts["folder"],
        f"model       {c['num_layers']} layers, hidden {c['hidden_size']}, {heads}, FFN {c['intermediate_size']}, "
        f"vocabulary {c['vocab_size']}",
        f"audio       {c['num_codebooks']} codebooks of {c['codebook_vocab']}, "
        f"{'tied' if c['tied_audio'] else 'a head of its own'}; rope theta {c['rope_theta']:,.0f}",
        *_codec(facts["codec"]),
        f"files       {shards}, {facts['tensor_count']} tensors ({dtypes}), {_bytes(facts['bytes'])}",
        f"parameters  {facts['parameters']:,}",
    ]
    for part, entry in facts["parts"].items():
        lines.append(f"  {part:<16}{entry['parameters']:>15,}  {entry['tensors']:>4} tensors  {_bytes(entry['bytes'])}")
    lines += [
        f"KV cache    {kv['bytes_per_row'] / 1024:g} KiB per row, {_bytes(kv['bytes'])} at {kv['rows']} rows",
        f"each row    touches {row['parameters']:,} weights, {_bytes(row['bytes'])}",
    ]
    if made := facts.get("provenance"):
        lines.append(_made(made) + ("; all hashes are right" if "verified" in facts else ""))
    for name, tensor in facts.get("tensors", {}).items():
        lines.append(f"{name}  {tensor['dtype']}  {tensor['shape']}  {tensor['shard']}")
    return "\n".join(lines)


def _made(provenance: dict) -> str:
    """Of a file that `octavo quantize` wrote; what it says may be anybody's, and is kept to this line."""
    scores, failures = provenance.get("scores"), provenance.get("failures")
    gate = "not judged" if not scores else "failed the gate" if failures else "passed the gate"
    source = provenance.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    said = f"{provenance.get('type')} by {provenance.get('tool')} from {name}"
    return f"quantized   {''.join(character if character.isprintable() else ' ' for character in said)}: {gate}"


def _codec(c: dict) -> list[str]:
    def chain(widths: tuple[int, ...]) -> str:
        return "-".join(map(str, widths))

    lines = [
        f"codec       {c['codebooks']} codebooks of {c['codebook_size']} x {c['codebook_dim']}, RVQ {c['rvq_width']}, "
        f"latent {c['latent']}, strides {chain(c['strides'])}",
        f"  decoder       {chain(c['widths'])}",
    ]
    if encoder := c["encoder"]:
        hubert = encoder["hubert"]
        lines.append(f"  encoder       {chain(encoder['widths'])}; HuBERT of {hubert['layers']} layers, "
                     f"{hubert['width']} wide, FFN {hubert['ffn']}")  # fmt: skip
    return lines


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
