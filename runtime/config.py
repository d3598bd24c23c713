"""What the checkpoint says (ModelConfig) and what the user says (EngineConfig, SamplingParams). Frozen and checked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import CheckpointError, RequestError

MODEL_TYPE = "higgs_multimodal_qwen3"
MAX_CONTEXT = 8192  # rows; the length the published model was trained at, although config.json says 32768
DEFAULT_ROPE_THETA = 1_000_000.0


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of the language model and of its fused audio table, as config.json gives them."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_codebooks: int = 8
    codebook_vocab: int = 1026  # 1024 codes, BOC, EOC
    rms_norm_eps: float = 1e-6
    rope_theta: float = DEFAULT_ROPE_THETA
    max_context: int = MAX_CONTEXT
    tied_audio: bool = True

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Reads a config.json defensively: every required number must be there and make sense; the rest has defaults.

        The rope theta is `rope_parameters.rope_theta`, else `rope_theta`, else 1e6: some files carry a null, and the
        10,000 of old Qwen3 configuration classes must never slip in. Raises CheckpointError.
        """
        if config.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"config.json says model_type {config.get('model_type')!r}; octavo runs {MODEL_TYPE!r} (Higgs TTS v3)."
            )
        text = _section(config, "text_config")
        audio = _section(config, "audio_encoder_config")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", "default") if isinstance(rope, Mapping) else rope
        if rope_type != "default":
            raise CheckpointError(
                f"text_config.rope_parameters asks for rope type {rope_type!r}; octavo knows 'default'."
            )
        if audio.get("encoder_type", "discrete") != "discrete":
            raise CheckpointError(
                "audio_encoder_config is not 'discrete': this is a speech recogniser, not a TTS model."
            )
        if text.get("hidden_act", "silu") != "silu" or text.get("attention_bias") or text.get("use_sliding_window"):
            raise CheckpointError("text_config asks for biases, sliding windows or another activation than silu.")
        hidden, heads = _whole(text, "hidden_size"), _whole(text, "num_attention_heads")
        cfg = cls(
            hidden_size=hidden,
            intermediate_size=_whole(text, "intermediate_size"),
            num_layers=_whole(text, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_whole(text, "num_key_value_heads", heads),
            head_dim=_whole(text, "head_dim", hidden // heads),
            vocab_size=_whole(text, "vocab_size"),
            num_codebooks=_whole(audio, "num_codebooks", 8),
            codebook_vocab=_whole(audio, "vocab_size", 1026),
            rms_norm_eps=_number(text.get("rms_norm_eps"), 1e-6, "rms_norm_eps"),
            rope_theta=_number(rope.get("rope_theta") or text.get("rope_theta"), DEFAULT_ROPE_THETA, "rope_theta"),
            max_context=min(_whole(text, "max_position_embeddings", MAX_CONTEXT), MAX_CONTEXT),
            tied_audio=bool(audio.get("tie_word_embeddings", True)),
        )
        if cfg.num_heads % cfg.num_kv_heads or cfg.head_dim % 2:
            raise CheckpointError(
                f"{cfg.num_heads} query heads do not share {cfg.num_kv_heads} key heads of {cfg.head_dim} evenly: "
                "config.json is damaged."
            )
        if (cfg.num_codebooks, cfg.codebook_vocab) != (8, 1026):
            raise CheckpointError(
                f"config.json names {cfg.num_codebooks} codebooks of {cfg.codebook_vocab}; Higgs TTS v3 has 8 of 1026."
            )
        return cfg

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def boc(self) -> int:
        """Begin of codes: fills a codebook's rows before its first code."""
        return self.codebook_vocab - 2

    @property
    def eoc(self) -> int:
        """End of codes: fills a codebook's rows after its last code."""
        return self.codebook_vocab - 1


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine may hold at once."""

    max_batch: int = 8  # requests decoded together
    max_context: int = MAX_CONTEXT  # rows of prompt and speech per request, if the model takes so many
    kv_rows: int = 8192  # rows of all requests and cached voices together
    page_size: int = 16  # rows per page of the KV cache
    prefill_rows: int = 2048  # prompt rows of one pass; between two of them everybody gets a row
    graphs: bool = True  # CUDA: rows and codec pushes are captured and replayed
    deterministic: bool = False  # a request's codes never hang on what else runs, to the last bit; slower

    def __post_init__(self):
        _make_plain(self)
        for name in ("graphs", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        for name in ("max_batch", "max_context", "kv_rows", "page_size", "prefill_rows"):
            if not _is_number(getattr(self, name), int) or getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be a whole number, at least 1.")
        if self.max_context > MAX_CONTEXT:
            raise RequestError(
                f"max_context is {self.max_context}; the model was trained at {MAX_CONTEXT} rows at most."
            )

    @property
    def num_pages(self) -> int:
        return math.ceil(self.kv_rows / self.page_size)

    @property
    def num_slots(self) -> int:
        """Utterances on their way: those in the batch, and some whose last sound is still being made."""
        return self.max_batch + max(2, self.max_batch // 4)


@dataclass(frozen=True)
class SamplingParams:
    """How codes are drawn. `temperature` 0 (or `top_k` 1) is greedy; `top_k` None or 0 and `top_p` None or 1 are off.

    `max_rows` counts delayed rows: T frames need T + 7.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float | None = None
    seed: int = 0
    max_rows: int = 2048

    def __post_init__(self):
        _make_plain(self)
        # The type is checked as well: these values come straight out of other people's JSON.
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 10:
            raise RequestError(f"temperature is {self.temperature!r}; it must lie between 0 (greedy) and 10.")
        if self.top_k is not None and (not _is_number(self.top_k, int) or self.top_k < 0):
            raise RequestError(f"top_k is {self.top_k!r}; it must be a whole number, at least 1, or 0 for off.")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise RequestError(f"top_p is {self.top_p!r}; it must lie in (0, 1].")
        if not _is_number(self.seed, int) or not 0 <= self.seed < 2**63:
            raise RequestError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1.")
        if not _is_number(self.max_rows, int) or not 8 <= self.max_rows <= MAX_CONTEXT:
            raise RequestError(f"max_rows is {self.max_rows!r}; it must be a whole number from 8 to {MAX_CONTEXT}.")

    @property
    def greedy(self) -> bool:
        return self.temperature <= 1e-5 or self.top_k == 1


def plain(value: Any) -> Any:
    """A number of another library (numpy's scalars, say) as Python's int or float; anything else as it is."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational) else value


def _make_plain(config: Any) -> None:
    """So that a numpy integer is as good a seed as any, and prints, compares and overflows like the others."""
    for field in fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    # math.isfinite is asked for floats alone: a whole number may be too large for it
    return isinstance(value, kind) and not isinstance(value, bool) and (type(value) is int or math.isfinite(value))  # type: ignore[arg-type]


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json has no {name}. Download it again.")
    return section


def _whole(section: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = section.get(key)
    value = default if value is None else value
    if not _is_number(value, int) or value < 1:  # type: ignore[operator]
        raise CheckpointError(f"config.json gives {key} as {value!r}; a whole number above 0 is needed.")
    return value  # type: ignore[return-value]


def _number(value: Any, default: float, key: str) -> float:
    value = default if value is None else value
    if not _is_number(value) or value <= 0:
        raise CheckpointError(f"config.json gives {key} as {value!r}; a number above 0 is needed.")
    return float(value)
