"""The quality gate: a quantized checkpoint against its source, and whether it may be used (quant.md 11).

Both are teacher-forced on what the source once said, since speech that each makes itself goes different ways at the
first code that differs. What each says by itself is compared in length and ending only. The models are never in memory
together: their engines run one after the other, and teacher-forced rows go through one layer of each at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.codec import Codec
from octavo.runtime.delay import BOC, CODEBOOKS, undelay
from octavo.runtime.tensor_names import CODEC_PREFIX

from .measures import choices, divergence, relative, stopping
from .rows import Drawn, repeat, speaker
from .scores import FreeRuns, Scores
from .walk import Utterance, Walk

HEARD = 8  # utterances whose sound is compared

# Limits of quant.md 11, by bits a weight: mean KL of every codebook, top-1 of codebook 0 and of the others.
LIMITS = {8: (0.002, 0.98, 0.98), 6: (0.01, 0.0, 0.0), 4: (0.05, 0.90, 0.0)}
MOST_EOC_SHIFT = 0.02
# Half of what made a published 4-bit model stop at once. Where the end is unlikely, its probability does not show that.
MOST_EOC_LOG_ODDS = 0.45
MOST_RUN_ONS = 1 / 200  # beyond the source's


def score(
    source: Checkpoint,
    quantized: Checkpoint,
    utterances: Sequence[Utterance],
    free: FreeRuns | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """utterances: what the source said (rows.draw); free: of `free_runs`. progress(layers done, layers in all).

    dtype: of the arithmetic of both; in fp32 the file is judged, and hardly what kernels round. Raises CheckpointError.
    """
    device = torch.device(device)
    with torch.inference_mode():
        ours, theirs = (Walk(checkpoint, utterances, device, dtype) for checkpoint in (source, quantized))
        hidden = []
        for _ in zip(ours.layers(), theirs.layers(), strict=True):
            hidden.append(relative(ours.x, theirs.x))
            progress(len(hidden), ours.cfg.num_layers)
        chosen = choices(ours.targets, ours.owner)
        assert chosen.codes.any(0).all(), "no utterance is long enough for all codebooks"
        mine, other = (walk.logits().view(len(ours.targets), CODEBOOKS, -1) for walk in (ours, theirs))
        at = [chosen.codes[:, c] for c in range(CODEBOOKS)]
        heads = [divergence(mine[at[c], c], other[at[c], c], c) for c in range(CODEBOOKS)]
        stops = stopping(mine[:, 0], other[:, 0], chosen)
        waveform = _relative_sound(_sound(source, mine, utterances), _sound(quantized, other, utterances))
    kl_mean, kl_p99, top1, top50 = zip(*heads, strict=True)
    return Scores(
        utterances=len(utterances),
        rows=len(ours.targets),
        kl_mean=kl_mean,
        kl_p99=kl_p99,
        top1=top1,
        top50=top50,
        eoc_shift=stops.eoc_shift,
        eoc_shift_last=stops.eoc_shift_last,
        eoc_log_odds=stops.eoc_log_odds,
        ending=stops.ending,
        hidden=tuple(hidden),
        waveform=waveform,
        free=free,
    )


def free_runs(
    quantized: str | os.PathLike,
    utterances: Sequence[Drawn],
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FreeRuns:
    """Loads the quantized checkpoint into an engine, and asks it for what the source was asked for.

    Raises as `Engine.load` does.
    """
    with speaker(quantized, device) as engine:
        return compare_runs(utterances, repeat(engine, utterances, progress))


def compare_runs(source: Sequence[Drawn], quantized: Sequence[Drawn]) -> FreeRuns:
    """The same asks, answered by either."""
    pairs = list(zip(source, quantized, strict=True))
    both = [(len(a.codes), len(b.codes)) for a, b in pairs if a.stopped and b.stopped]
    return FreeRuns(
        count=len(pairs),
        run_ons_source=sum(not a.stopped for a, _ in pairs),
        run_ons=sum(not b.stopped for _, b in pairs),
        early_source=sum(2 * a < b for a, b in both),
        early=sum(2 * b < a for a, b in both),
        length_ratio=sum(b for _, b in both) / sum(a for a, _ in both) if both else None,
        silence_source=sum(a.silence for a, _ in pairs) / len(pairs),
        silence=sum(b.silence for _, b in pairs) / len(pairs),
    )


def verdict(scores: Scores, bits: float) -> list[str]:
    """What is wrong with a checkpoint of so many bits a weight (8: 7 and more, 6: 5 and more, else 4), in sentences.

    No sentence: it passes.
    """
    kind = 8 if bits >= 7 else 6 if bits >= 5 else 4
    most_kl, *least = LIMITS[kind]
    wrong = []
    if far := [c for c, kl in enumerate(scores.kl_mean) if not kl <= most_kl]:
        kl = f"{scores.kl_mean[far[0]]:.2g}"
        wrong.append(
            f"The mean KL is {kl} in codebook {far[0]}{_more_of(far, 'large')}; at {kind} bits {most_kl} is allowed."
        )
    if far := [c for c, top1 in enumerate(scores.top1) if not top1 >= least[c > 0]]:
        top1, most = f"{scores.top1[far[0]]:.1%}", f"{least[far[0] > 0]:.0%}"
        wrong.append(
            f"The likeliest codes agree in {top1} of the rows of codebook {far[0]}{_more_of(far, 'seldom')}; at {kind} "
            f"bits {most} must."
        )
    if wrong:
        wrong.append(_where(scores.hidden))
    shifts = {"over all rows": scores.eoc_shift, "in the last rows before the end": scores.eoc_shift_last}
    for where, shift in shifts.items():
        if shift is not None and not abs(shift) <= MOST_EOC_SHIFT:
            wrong.append(
                f"The probability of the end of speech {where} is {shift:+.3f} off; {MOST_EOC_SHIFT} is allowed."
            )
    if not abs(scores.eoc_log_odds) <= MOST_EOC_LOG_ODDS:
        wrong.append(
            f"The log-odds of the end of speech are {scores.eoc_log_odds:+.2f} off; {MOST_EOC_LOG_ODDS} is allowed."
        )
    if free := scores.free:
        if _more(free.run_ons, free.run_ons_source, free.count):
            wrong.append(f"{free.run_ons} of {free.count} utterances ran on; of the source's, {free.run_ons_source}.")
        if _more(free.early, free.early_source, free.count):
            wrong.append(f"{free.early} of {free.count} utterances stopped before half of the source's length.")
    return wrong


def _more_of(codebooks: Sequence[int], how: str) -> str:
    return f", and too {how} in {len(codebooks) - 1} more" if len(codebooks) > 1 else ""


def _more(mine: int, others: int, count: int) -> bool:
    """More than the limit allows and than one, by more than chance explains: where the source does it in a share p of
    its speeches, the difference of two counts has the variance 2 n p (1 - p)."""
    p = others / count
    return mine - others > max(1, count * MOST_RUN_ONS) + 2 * math.sqrt(2 * count * p * (1 - p))


def _where(hidden: Sequence[float]) -> str:
    """Which layer adds most to the error: errors of equal layers add up like random steps."""
    squares = [0.0, *(value * value for value in hidden)]
    steps = [after - before for before, after in zip(squares, squares[1:], strict=False)]
    worst = max(range(len(steps)), key=lambda n: math.inf if math.isnan(steps[n]) else steps[n])
    return (
        f"Layer {worst} adds most to the error: behind it the hidden states have a relative L2 of {hidden[worst]:.3f}."
    )


def _sound(checkpoint: Checkpoint, logits: torch.Tensor, utterances: Sequence[Utterance]) -> np.ndarray:
    """The likeliest code of each position of the first utterances, as the checkpoint's codec decodes them: [n] fp32."""
    codec = Codec.load(checkpoint.weights(CODEC_PREFIX), logits.device)
    likeliest = logits[..., :BOC].argmax(-1).cpu().numpy()
    pcm, first = [np.zeros(0, np.float32)], 0
    for utterance in utterances[:HEARD]:
        frames = undelay(likeliest[first : first + len(utterance.rows)])
        pcm += [codec.decode(frames)] if len(frames) else []
        first += len(utterance.rows)
    checkpoint.release()
    return np.concatenate(pcm)


def _relative_sound(source: np.ndarray, quantized: np.ndarray) -> float | None:
    """Relative L2; None where the source is silent, or too short for a frame."""
    return float(np.linalg.norm(quantized - source) / np.linalg.norm(source)) if source.any() else None
