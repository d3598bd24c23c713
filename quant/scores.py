"""How far a quantized checkpoint is from its source, in figures: what the gate measures, files and reports keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from octavo.runtime.delay import CODEBOOKS


@dataclass(frozen=True)
class FreeRuns:
    """What both said when asked for the same, from the same seeds, each going its own way.

    A run-on is cut by the row limit or the guard. Where both stopped, the early one has less than half of the other's
    frames. silence: seconds without sound at the end, mean.
    """

    count: int
    run_ons_source: int
    run_ons: int
    early_source: int
    early: int
    length_ratio: float | None  # frames of the quantized over those of the source, where both stopped
    silence_source: float
    silence: float


@dataclass(frozen=True)
class Scores:
    """Quantized against source, teacher-forced on the same rows; tuples of eight go by codebook.

    KL(source || quantized) in nats, top-1 agreement (with one of those that the source's bf16 calls likeliest) and
    top-50 overlap are of the codes that a sampler may choose from, where the delay pattern leaves it a choice.

    eoc_*: of the probability that codebook 0 ends the speech, quantized minus source, mean: over all rows; over the
    last ten before the end (None: no utterance has one); and in log-odds, rows weighted by p (1 - p), so by how open
    the question is to either. ending: mean probabilities (source, quantized) of the rows up to the one that ends it.

    hidden: relative L2 behind each layer, mean of rows. waveform: relative L2 of the sound of the likeliest codes.
    """

    utterances: int
    rows: int
    kl_mean: tuple[float, ...]
    kl_p99: tuple[float, ...]
    top1: tuple[float, ...]
    top50: tuple[float, ...]
    eoc_shift: float
    eoc_shift_last: float | None
    eoc_log_odds: float
    ending: tuple[tuple[float, ...], ...]
    hidden: tuple[float, ...]
    waveform: float | None
    free: FreeRuns | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON may hold it, to six digits; what is not finite becomes None."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Of `to_dict`; NaN where a figure was not finite. Raises ValueError for anything else."""
        try:
            values = {name: convert(stored[name]) for name, convert in _FIELDS.items()}
            scores = cls(**values, free=stored["free"] and FreeRuns(**stored["free"]))
            lists = (scores.kl_mean, scores.kl_p99, scores.top1, scores.top50)
            if any(len(by_codebook) != CODEBOOKS for by_codebook in lists) or not scores.hidden:
                raise ValueError("lists of another length")
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"Its scores are damaged or of another octavo ({error}).") from error
        return scores


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _figure(value: Any) -> float:
    return math.nan if value is None else float(value)


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


def _figures(values: Any) -> tuple[float, ...]:
    return tuple(map(_figure, values))


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "utterances": int,
    "rows": int,
    "kl_mean": _figures,
    "kl_p99": _figures,
    "top1": _figures,
    "top50": _figures,
    "eoc_shift": _figure,
    "eoc_shift_last": _maybe,
    "eoc_log_odds": _figure,
    "ending": lambda pairs: tuple(map(_figures, pairs)),
    "hidden": _figures,
    "waveform": _maybe,
}
