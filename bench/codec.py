"""What the codec costs: work of the streaming decoder (C7) and speed of the whole decode (C8). Random weights.

    python -m octavo.bench.codec --json OUT

C7: frames decoded over frames emitted when 98 frames come in pushes of 20. In fp32 the stream differs from the whole
decode by another order of additions; fp64 tells that it is only that. C8: 64 and 83 frames at the published widths in
fp32, against the tokenizer class of transformers with the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec

from .codec_reference import DECODER, reference_tokenizer
from .command import main
from .measure import Case, Check, Result, compare, relative

WORK, SPEED = 1.6, 1.1  # what C7 and C8 ask for
STREAM_LIMITS = {torch.float32: 1e-5, torch.float64: 1e-6}
DECODE_LIMIT = 1e-5
FRAMES, CHUNK = 98, 20  # an utterance of four seconds, pushed in parts
DECODES = ((64, 1), (83, 1), (83, 2))  # frames, threads


def results(repetitions: int, device: torch.device, widths: Mapping[str, int] = DECODER) -> list[Result]:
    """Both goals. Decoding takes long and varies little: a third of the repetitions are enough."""
    reference = reference_tokenizer(dict(widths)).to(device)
    weights = reference.state_dict()
    codec = Codec.load(Weights(weights), device)
    exact = Codec.load(Weights(weights), device, torch.float64)
    repetitions = max(1, repetitions // 3)
    found = [streaming_work([codec, exact])]
    for frames, threads in DECODES:
        found.append(decode_speed(codec, reference, frames, repetitions, threads))
    return found


def streaming_work(codecs: list[Codec]) -> Result:
    """C7. codecs: the same one in several dtypes, each of which must give what its whole decode gives."""
    checks = []
    for codec in codecs:
        codes = random_codes(codec, FRAMES)
        stream = codec.stream(1)
        # As many dummies as bring out the rest; the end is known with the last real frames.
        pushes = [*codes.split(CHUNK, dim=2), torch.zeros_like(codes[:, :, : stream.lookahead])]
        ends = [FRAMES if number >= len(pushes) - 2 else None for number in range(len(pushes))]
        sound = torch.cat([stream.push([0], part, [end])[0] for part, end in zip(pushes, ends, strict=True)])
        dtype = codec.decoder.table.dtype
        what = f"streamed sound in {str(dtype).removeprefix('torch.')}: relative distance from the whole decode"
        checks.append(Check(what, relative(sound, codec.decoder(codes)[0]), STREAM_LIMITS[dtype]))
        decoded, emitted = sum(part.shape[2] for part in pushes), len(sound) / codec.config.hop
    case = f"{FRAMES} frames in pushes of {CHUNK}"
    unit = "frames decoded per frame"
    return Result("C7", "streaming decode", case, decoded / emitted, unit, WORK, at_most=True, checks=tuple(checks))


def decode_speed(codec: Codec, reference: Any, frames: int, repetitions: int, threads: int) -> Result:
    """C8, on one thread; with more the figure has no goal. Raises CheckFailed unless both decode to the same."""
    codes = random_codes(codec, frames)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return codec.decoder(codes)

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        return reference.decode(codes).audio_values[:, 0]

    check = Check("relative distance of the decoded sound", relative(ours(), theirs()), DECODE_LIMIT)
    case = f"{frames} frames, fp32, {threads} thread{'s' * (threads > 1)}"
    goal, asked = ("C8", SPEED) if threads == 1 else ("", None)
    cases = Case(ours), Case(theirs)
    return compare("codec decode", case, *cases, (check,), repetitions, goal, asked, threads, codes.device)


def random_codes(codec: Codec, frames: int) -> torch.Tensor:
    """[1, codebooks, frames] int64."""
    shape = (1, codec.config.codebooks, frames)
    codes = torch.randint(0, codec.config.codebook_size, shape, generator=torch.Generator().manual_seed(frames))
    return codes.to(codec.decoder.table.device)


if __name__ == "__main__":
    sys.exit(main(results, "bench.codec", __doc__ or ""))
