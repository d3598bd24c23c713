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

import numpy as np
import torch

from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec
from octavo.runtime.delay import delay

from .codec_reference import DECODER, reference_tokenizer
from .command import main
from .measure import Case, Check, Result, compare, relative

WORK, SPEED = 1.6, 1.1  # what C7 and C8 ask for
STREAM_LIMITS = {torch.float32: 1e-5, torch.float64: 1e-6}
DECODE_LIMIT = 1e-5
KERNELS_LIMIT = 1e-4  # on CUDA: 16 bits of each activation
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
        stream = codec.stream(delayed(codes))
        # As many dummies as bring out the rest; the end is known with the last real frames.
        counts = [min(CHUNK, FRAMES - begin) for begin in range(0, FRAMES, CHUNK)] + [stream.lookahead]
        for number, count in enumerate(counts):
            stream.push([0], [count], [FRAMES if number >= len(counts) - 2 else None])
        sound = torch.from_numpy(np.concatenate([samples for _, _, samples in stream.collect()]))
        dtype = codec.decoder.table.dtype
        what = f"streamed sound in {str(dtype).removeprefix('torch.')}: relative distance from the whole decode"
        checks.append(Check(what, relative(sound, whole(codec, codes)), STREAM_LIMITS[dtype]))
        decoded, emitted = sum(counts), len(sound) / codec.config.hop
    case = f"{FRAMES} frames in pushes of {CHUNK}"
    unit = "frames decoded per frame"
    return Result("C7", "streaming decode", case, decoded / emitted, unit, WORK, at_most=True, checks=tuple(checks))


def decode_speed(codec: Codec, reference: Any, frames: int, repetitions: int, threads: int) -> Result:
    """C8, on one thread; with more the figure has no goal. Raises CheckFailed unless both decode to the same."""
    codes = random_codes(codec, frames)
    limit = KERNELS_LIMIT if codes.is_cuda else DECODE_LIMIT

    def ours() -> torch.Tensor:
        return whole(codec, codes)

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        return reference.decode(codes).audio_values[:, 0]

    with torch.backends.cudnn.flags(allow_tf32=False):  # it is timed as it comes, and compared in full precision
        check = Check("relative distance of the decoded sound", relative(ours(), theirs()[0].cpu()), limit)
    case = f"{frames} frames, fp32, {threads} thread{'s' * (threads > 1)}"
    goal, asked = ("C8", SPEED) if threads == 1 else ("", None)
    cases = Case(ours), Case(theirs)
    return compare("codec decode", case, *cases, (check,), repetitions, goal, asked, threads, codes.device)


@torch.inference_mode()
def whole(codec: Codec, codes: torch.Tensor) -> torch.Tensor:
    """The whole decode of codes [1, codebooks, T] as the product does it, on the host, in the codec's dtype."""
    if codes.is_cuda and codec.decoder.table.dtype == torch.float32:
        return torch.from_numpy(codec.decode(codes[0].T))
    return codec.decoder(codes)[0].cpu()


def random_codes(codec: Codec, frames: int) -> torch.Tensor:
    """[1, codebooks, frames] int64."""
    shape = (1, codec.config.codebooks, frames)
    codes = torch.randint(0, codec.config.codebook_size, shape, generator=torch.Generator().manual_seed(frames))
    return codes.to(codec.decoder.table.device)


def delayed(codes: torch.Tensor) -> torch.Tensor:
    """[1, codebooks, T] -> [1, T + codebooks - 1, codebooks] int16: as the sampler stores them, for a stream."""
    return torch.from_numpy(delay(codes[0].T.cpu().numpy())).to(codes.device, torch.int16)[None]


if __name__ == "__main__":
    sys.exit(main(results, "bench.codec", __doc__ or ""))
