"""The delay pattern's state machine for a batch, with selects only: what a row becomes after sampling.

Codebook c runs c rows late. Rows 0..C-1 ramp in: codebooks c > row are forced to BOC. After that, EOC in codebook 0
starts the ramp-out: C - 2 more rows are sampled freely, then the request is done. EOC within the first C rows is not
looked at.
"""

import torch


def delay_step(
    sampled: torch.Tensor, delay: torch.Tensor, left: torch.Tensor, boc: int, eoc: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """sampled: [B, C] int64; delay: [B] int64, rows of the ramp-in so far; left: [B] int64, rows of the ramp-out still
    to come, -1 before it. Returns (row [B, C], delay, left, done [B] bool): the row to store and feed back, the state
    after it, and whether it was the last. Nothing is changed in place.
    """
    C = sampled.shape[1]
    ramp_in = delay < C
    row = sampled.masked_fill(torch.arange(C, device=sampled.device) > delay[:, None], boc)
    ended = ~ramp_in & (left < 0) & (sampled[:, 0] == eoc)
    left_after = torch.where(ended, C - 2, torch.where(left > 0, left - 1, left))
    return row, delay + ramp_in, left_after, left_after == 0
