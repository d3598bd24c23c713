"""Which type each tensor of a checkpoint gets: the body's is asked for, the rest stays 16-bit, `keep` overrules.

Types are named as they are stored: "awq", "int8", "fp8" and "nf4" in safetensors, ggml's "Q4_K" in GGUF, and "bf16",
"fp16" and "fp32" for plain numbers in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.errors import CheckpointError, RequestError
from octavo.runtime.tensor_names import AUDIO_HEAD, AUDIO_TABLE, BODY, CODEC_PREFIX, TEXT_EMBEDDING

FORMATS = ("awq", "gguf", "int8", "fp8", "nf4")
FLOATS = ("bf16", "fp16", "fp32")
BLOCK_TYPES = {"Q8_0": 32, "Q6_K": 256, "Q5_K": 256, "Q4_K": 256, "Q4_0": 32}  # that are written: weights per block
GGUF_TYPES = {  # --type: the type of most of the body, and of the rest of it
    "q8_0": ("Q8_0", None),
    "q6_k": ("Q6_K", None),
    "q5_k": ("Q5_K", None),
    "q4_k": ("Q4_K", None),
    "q4_k_m": ("Q4_K", ("v_proj", "down_proj")),
    "q4_k_even": ("Q4_K", ("o_proj", "down_proj")),
    "q4_0": ("Q4_0", None),
    "bf16": ("bf16", None),
    "fp16": ("fp16", None),
}
DEFAULT_GGUF_TYPE = "q4_k_even"
_RAISED = "Q6_K"  # what the mixes give those tensors in the layers that matter more
_ALIASES = {"f16": "fp16", "f32": "fp32", "float16": "fp16", "float32": "fp32", "bfloat16": "bf16"}
_PARTS = {"text": TEXT_EMBEDDING, "audio": AUDIO_TABLE, "codec": CODEC_PREFIX + "*"}
# How a type is judged. e4m3 keeps 4 significant bits: its error lies between Q6_K's and Q5_K's.
_BITS = {"awq": 4, "nf4": 4, "Q4_K": 4, "Q4_0": 4, "Q5_K": 5, "Q6_K": 6, "int8": 8, "fp8": 6, "Q8_0": 8}


@dataclass(frozen=True)
class Recipe:
    """kinds: the type of each tensor that is written, in the order of the file; bits: of the body's coarsest type."""

    format: str
    type: str  # "q4_k_m" and the like in GGUF, else the format's name
    group_size: int
    kinds: Mapping[str, str]
    bits: int

    @property
    def is_gguf(self) -> bool:
        return self.format == "gguf"

    @property
    def title(self) -> str:
        return f"{self.type} in groups of {self.group_size}" if self.format == "awq" else self.type

    def searched(self) -> frozenset[str]:
        """The tensors that AWQ's search makes: matrices, and the norms that take their scales.

        Scales are folded within a layer, so they are all in AWQ or none. Raises RequestError for a layer of both.
        """
        layers: dict[int, list[str]] = {}
        for name in self.kinds:
            if is_linear(name) or (name.startswith(BODY) and name.endswith("_layernorm.weight")):
                layers.setdefault(_layer(name), []).append(name)
        found: set[str] = set()
        for names in layers.values():
            kept = [name for name in names if is_linear(name) and self.kinds[name] != "awq"]
            if not kept:
                found |= set(names)
            elif len(kept) < sum(map(is_linear, names)):
                raise RequestError(
                    f"--keep takes {kept[0]} out of AWQ's search, but not the rest of its layer, which shares scales "
                    f"with it. Keep {BODY}{_layer(kept[0])}.*, or round without a search: --calib none."
                )
        return frozenset(found)


def recipe(
    checkpoint: Checkpoint,
    config: ModelConfig,
    format: str,
    type: str | None = None,
    group_size: int = 128,
    keep: Mapping[str, str] | None = None,
    without: frozenset[str] = frozenset(),
) -> Recipe:
    """What `quantize` makes of `checkpoint`. without: tensors to leave out, copies that are tied.

    keep: patterns of tensor names (as in the shell), or "text", "audio" and "codec", to types. Raises RequestError for
    a format or type that does not exist, for rows that groups or blocks do not divide, and for a pattern without a
    tensor; CheckpointError for a source that is quantized already.
    """
    if format not in FORMATS:
        raise RequestError(f"There is no format {format!r}. Use one of {', '.join(FORMATS)}.")
    type = _type(format, type)
    base, raised = GGUF_TYPES[type] if format == "gguf" else (type, None)
    if format == "awq":
        _check_group(group_size)
    _require_plain(checkpoint)
    kinds: dict[str, str] = {}
    for name in _file_order(checkpoint, without):
        stored = checkpoint.info[name]
        kinds[name] = stored.kind
        if is_linear(name):
            kinds[name] = base
            if raised and name.split(".")[-2] in raised and _matters(_layer(name), config.num_layers):
                kinds[name] = _RAISED
        elif name == TEXT_EMBEDDING and base not in FLOATS:
            kinds[name] = "Q8_0" if format == "gguf" else "int8"
        elif name in (TEXT_EMBEDDING, AUDIO_TABLE, AUDIO_HEAD):
            kinds[name] = base if base in FLOATS else stored.kind
        elif len(stored.shape) == 1 and name.startswith("body."):
            kinds[name] = "fp32"  # norms: AWQ folds scales into them, and 0.2 MB are no price for being exact
    for pattern, wanted in (keep or {}).items():
        kinds |= _kept(pattern, wanted, kinds, format)
    for name, kind in kinds.items():
        _check_fit(name, kind, checkpoint.info[name].shape, group_size)
    bits = min((_BITS[kinds[name]] for name in kinds if is_linear(name) and kinds[name] in _BITS), default=16)
    return Recipe(format, type, group_size, kinds, bits)


def is_linear(name: str) -> bool:
    """Whether a tensor is one of the body's matrices."""
    return name.startswith(BODY) and name.endswith("_proj.weight")


def _type(format: str, type: str | None) -> str:
    if format != "gguf":
        if type is not None:
            raise RequestError(f"--type chooses among GGUF's types; {format} has one. Leave --type out.")
        return format
    wanted = (type or DEFAULT_GGUF_TYPE).lower()
    wanted = _ALIASES.get(wanted, wanted)
    if wanted not in GGUF_TYPES:
        raise RequestError(f"There is no type {type!r} for GGUF files. Use one of {', '.join(GGUF_TYPES)}.")
    return wanted


def _check_group(group_size: int) -> None:
    if type(group_size) is not int or group_size < 16 or group_size % 16:
        raise RequestError(f"The group size is {group_size!r}; AWQ takes multiples of 16. 128 is usual, 32 is finer.")


def _require_plain(checkpoint: Checkpoint) -> None:
    for name, stored in checkpoint.info.items():
        if not stored.plain:
            raise CheckpointError(
                f"{checkpoint.path} is quantized already ({name} is {stored.kind}). Give the 16-bit original."
            )
        if stored.kind not in FLOATS:
            raise CheckpointError(
                f"{name} is {stored.kind}; octavo quantizes checkpoints of {', '.join(FLOATS)}. Give another source."
            )


def _file_order(checkpoint: Checkpoint, without: frozenset[str]) -> list[str]:
    """Tables, layers by their number, the codec: as calibration goes through them."""

    def key(name: str) -> tuple:
        if name.startswith(BODY):
            return 1, _layer(name), name
        return (2 if name.startswith("body.") else 3 if name.startswith(CODEC_PREFIX) else 0), 0, name

    return sorted((name for name in checkpoint if name not in without), key=key)


def _layer(name: str) -> int:
    return int(name.removeprefix(BODY).split(".")[0])


def _matters(layer: int, layers: int) -> bool:
    """llama.cpp's choice for its Q4_K_M mix: the first and the last eighth, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _kept(pattern: str, wanted: str, kinds: Mapping[str, str], format: str) -> dict[str, str]:
    kind = _named(wanted, format)
    glob = _PARTS.get(pattern, pattern)
    names = [name for name in kinds if fnmatchcase(name, glob) or fnmatchcase(name.removesuffix(".weight"), glob)]
    if not names:
        raise RequestError(
            f"--keep {pattern}={wanted} fits no tensor. `octavo inspect IN --tensors` lists their names; text, audio "
            "and codec are short for those parts."
        )
    return dict.fromkeys(names, kind)


def _named(wanted: str, format: str) -> str:
    kind = _ALIASES.get(wanted.lower(), wanted.lower())
    if kind in FLOATS:
        return kind
    known = (
        {name.lower(): name for name in BLOCK_TYPES}
        if format == "gguf"
        else {"int8": "int8", "fp8": "fp8", "nf4": "nf4"}
    )
    if format == "awq":
        known["awq"] = "awq"
    if kind not in known:
        raise RequestError(f"{format} files hold no type {wanted!r}. Use one of {', '.join([*FLOATS, *known])}.")
    return known[kind]


def _check_fit(name: str, kind: str, shape: tuple[int, ...], group_size: int) -> None:
    """Raises RequestError unless a tensor of this shape can have this type."""
    if kind in FLOATS:
        return
    if not (is_linear(name) or name in (TEXT_EMBEDDING, AUDIO_TABLE, AUDIO_HEAD)):
        raise RequestError(
            f"{name} cannot be {kind}: only the matrices of the language model and its tables are quantized. "
            f"Use {', '.join(FLOATS)}, or a pattern of matrices, such as {BODY}0.*_proj."
        )
    N, K = shape
    if kind == "awq" and N % 8:
        raise RequestError(f"{name} has {N} rows, and AWQ packs 8 of them in a word. Keep it: --keep {name}=bf16.")
    size = {"awq": group_size, "nf4": 64}.get(kind) or BLOCK_TYPES.get(kind, 1)
    if (N * K if kind == "nf4" else K) % size == 0:
        return
    what = f"groups of {size}" if kind == "awq" else f"{kind}'s blocks of {size}"
    fitting = ", ".join(str(n) for n in (128, 64, 32, 16) if K % n == 0)
    advice = f"Use a --group-size of {fitting}." if kind == "awq" and fitting else f"Keep it: --keep {name}=bf16."
    raise RequestError(f"{name} has rows of {K} values, which {what} do not divide. {advice}")
