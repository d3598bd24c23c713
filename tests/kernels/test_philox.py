"""The draws: published numbers, an independent Philox, and the kernel's."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from octavo.kernels.launch import jit, tl
from octavo.kernels.philox import philox, uniform, uniform_in_kernel


def test_philox_gives_the_published_numbers():
    """Random123's known answers for Philox 4x32-10 (first word): all zeros, and all ones in the key."""
    assert philox(0, torch.tensor([0])).item() == 0x6627E8D5
    generator = np.random.Generator(np.random.PCG64(0))
    for seed in [1, 2**31, 2**32 + 5, 2**63 - 1, int(generator.integers(2**62))]:
        for counter in [0, 1, 12345, 2**32 - 1]:
            assert philox(torch.tensor(seed), torch.tensor([counter])).item() == scalar_philox(seed, counter)


def scalar_philox(seed: int, counter: int) -> int:
    """The paper's definition on Python integers."""
    c, k = [counter, 0, 0, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high2, low2 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high2 ^ c[1] ^ k[0], low2, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[0]


def test_draws_are_uniform_below_one_and_differ_by_row_codebook_and_seed():
    counters = torch.arange(2048 * 8).view(-1, 8)
    u = uniform(7, counters)
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert u.unique().numel() > 0.99 * u.numel()
    assert not torch.equal(u, uniform(8, counters))
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.1


@jit
def _kernel(seed_ptr, counter_ptr, u_ptr):
    n = tl.program_id(0)
    tl.store(u_ptr + n, uniform_in_kernel(tl.load(seed_ptr + n), tl.load(counter_ptr + n)))


def test_the_kernels_draws_are_the_same(triton_device):
    seeds = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**62 + 12345, 2**63 - 1])
    counters = torch.tensor([0, 1, 7, 12345, 2**14 + 3, 2**31 - 1])
    seed, counter = (x.flatten().to(triton_device) for x in torch.meshgrid(seeds, counters, indexing="ij"))
    u = torch.empty(len(seed), device=triton_device)
    _kernel[(len(seed),)](seed, counter.int(), u)
    assert torch.equal(u, uniform(seed, counter))
