"""What is measured of two models' logits and hidden states on the same rows (quant.md 11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from octavo.runtime.delay import BOC, CODEBOOKS, EOC

TOP = 50  # entries, the sampler's default cut
LAST = 10  # rows before the end that are looked at apart
ENDING = 20  # rows before the end whose probabilities are shown
_CODES = (*range(BOC), EOC)  # what codebook 0 may say; the others say no EOC that anybody hears


@dataclass(frozen=True, eq=False)
class Choices:
    """Which of the M rows leave something to choose. owner: [M] int64, whose they are; codes: [M, 8] bool, positions
    that a sampler decides; speaking: [M] bool, rows whose EOC in codebook 0 would end the speech; ends: [E] int64, the
    rows that did."""

    owner: torch.Tensor
    codes: torch.Tensor
    speaking: torch.Tensor
    ends: torch.Tensor


class Divergence(NamedTuple):
    """Of one codebook: see Scores."""

    kl_mean: float
    kl_p99: float
    top1: float
    top50: float


class Stopping(NamedTuple):
    """Of the end of speech: see Scores."""

    eoc_shift: float
    eoc_shift_last: float | None
    eoc_log_odds: float
    ending: tuple[tuple[float, ...], ...]


def choices(targets: torch.Tensor, owner: torch.Tensor) -> Choices:
    """targets: [M, 8] int64, rows of codes one utterance after the other; owner: [M] int64, whose they are."""
    begins = torch.ones_like(owner, dtype=torch.bool)
    begins[1:] = owner[1:] != owner[:-1]
    count = torch.arange(len(owner), device=owner.device)
    number = count - torch.where(begins, count, 0).cummax(0).values  # of the row in its utterance
    ended = targets[:, 0] == EOC
    first = ended.clone()
    first[1:] &= ~ended[:-1] | begins[1:]
    codes = targets < BOC
    codes[:, 0] |= first
    speaking = codes[:, 0] & (number >= CODEBOOKS)  # before that nobody looks for an EOC
    return Choices(owner, codes, speaking, (first & speaking).nonzero()[:, 0])


def divergence(source: torch.Tensor, quantized: torch.Tensor, codebook: int) -> Divergence:
    """source, quantized: [m, 1026] fp32 logits of one codebook.

    Heads of codes are flat: a model that runs in bf16 has several likeliest codes in many rows, and its argmax is
    whichever comes first. The quantized one agrees with any of them.
    """
    legal = torch.tensor(_CODES if codebook == 0 else range(BOC), device=source.device)
    source, quantized = source[:, legal], quantized[:, legal]
    ours, theirs = source.log_softmax(-1), quantized.log_softmax(-1)
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    mine, others, as_run = source.topk(TOP).indices, quantized.topk(TOP).indices, source.bfloat16()
    agree = as_run.gather(1, others[:, :1])[:, 0] == as_run.amax(-1)
    shared = torch.zeros_like(source, dtype=torch.bool).scatter_(1, mine, True).gather(1, others)
    return Divergence(
        kl_mean=kl.mean().item(),
        kl_p99=kl.quantile(0.99).item(),
        top1=agree.float().mean().item(),
        top50=shared.float().mean().item(),
    )


def stopping(source: torch.Tensor, quantized: torch.Tensor, chosen: Choices) -> Stopping:
    """source, quantized: [M, 1026] fp32 logits of codebook 0."""
    odds = torch.stack([_log_odds(source), _log_odds(quantized)])  # [2, M]
    p = odds.sigmoid()
    shift = p[1] - p[0]
    ends, owner, speaking = chosen.ends.tolist(), chosen.owner.tolist(), chosen.speaking.tolist()
    before = [
        [end - back for end in ends if end >= back and speaking[end - back] and owner[end - back] == owner[end]]
        for back in range(ENDING + 1)
    ]
    last = sum(before[1 : LAST + 1], [])
    # Weighted by both: the rows where one of the two is sure by chance would look like a shift towards the other.
    weight = (p * (1 - p)).sum(0)[chosen.speaking].double()
    open_shift = ((odds[1] - odds[0])[chosen.speaking].double() * weight).sum() / weight.sum()
    return Stopping(
        eoc_shift=shift[chosen.speaking].mean().item(),
        eoc_shift_last=shift[last].mean().item() if last else None,
        eoc_log_odds=open_shift.item(),
        ending=tuple(tuple(p[:, rows].mean(1).tolist()) for rows in reversed(before) if rows),
    )


def relative(source: torch.Tensor, quantized: torch.Tensor) -> float:
    """Relative L2 of rows [N, K], mean of rows: a few rows are so much larger that they would outweigh all others."""
    away = torch.linalg.vector_norm(quantized.float() - source.float(), dim=-1)
    return (away / torch.linalg.vector_norm(source.float(), dim=-1)).mean().item()


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """[m, 1026] -> [m], of EOC against all codes."""
    return logits[:, EOC] - logits[:, :BOC].logsumexp(-1)
