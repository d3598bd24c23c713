"""Draws, sampling and the batched delay state machine, each against something independent."""

import numpy as np
import pytest
import torch
from scipy import stats

from octavo.kernels.delay_step import delay_step
from octavo.kernels.philox import philox, uniform
from octavo.kernels.sample_codes import sample_codes
from octavo.runtime.delay import DelayState

V = 1026


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


def kept_set(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, one entry after the other, in fp64."""
    z = logits.astype(np.float64) / temperature
    keep = z >= np.sort(z)[-top_k]
    p = np.where(keep, np.exp(z - z.max()), 0)
    p /= p.sum()
    if top_p < 1:
        total, least = 0.0, np.inf
        for i in np.argsort(-p, kind="stable"):
            if total >= top_p:
                break
            total, least = total + p[i], z[i]
        p = np.where(z >= least, p, 0)
    return p / p.sum()


SETTINGS = [(0.8, 50, 1.0), (1.0, V, 1.0), (0.7, V, 0.9), (1.3, 30, 0.8), (0.05, 5, 1.0)]


@pytest.mark.parametrize("temperature, top_k, top_p", SETTINGS)
def test_sampling_follows_the_softmax_of_what_is_kept(temperature, top_k, top_p, device):
    """Chi-square over 20,000 draws, one codebook of fixed random logits; nothing outside the kept set is ever drawn."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 3
    n = 20_000
    counts = draw_counts(logits, n, temperature, top_k, top_p, device)
    check_counts(counts, kept_set(logits.numpy(), temperature, top_k, top_p))


def draw_counts(logits, n, temperature, top_k, top_p, device, seed=5):
    u = uniform(seed, torch.arange(n).view(-1, 8)).to(device)
    B = len(u)
    codes = sample_codes(
        logits.to(device).expand(B, 8, V),
        u,
        torch.full((B,), temperature, device=device),
        torch.full((B,), top_k, device=device),
        torch.full((B,), top_p, device=device),
    )
    return np.bincount(codes.flatten().cpu().numpy(), minlength=V)


def check_counts(counts: np.ndarray, p: np.ndarray) -> None:
    assert counts[p == 0].sum() == 0
    expected = p * counts.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    if len(observed) > 1:
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_sampling_statistics_on_real_logits(shared, device):
    """The real model's first eight rows: the ramp-in property, and the distribution of codebook 0's draws."""
    path = shared / "data" / "real_logits_8x8x1026_f32.bin"
    if not path.is_file():
        pytest.skip("needs ../shared/data/real_logits_8x8x1026_f32.bin")
    logits = torch.from_numpy(np.fromfile(path, "<f4")).view(8, 8, V)
    for step in range(8):
        best = logits[step].argmax(-1)
        assert (best[step + 1 :] == 1024).all(), "codebooks that have not begun prefer BOC"
        assert (best[: step + 1] < 1024).all(), "codebooks that have begun prefer a code"
    for step in (0, 3, 7):
        for temperature, top_k, top_p in SETTINGS[:4]:
            counts = draw_counts(logits[step, 0], 16_000, temperature, top_k, top_p, device, seed=step)
            check_counts(counts, kept_set(logits[step, 0].numpy(), temperature, top_k, top_p))


def test_each_request_of_a_batch_has_its_own_parameters(device):
    """Mixed greedy, top-k and top-p requests give what each gives alone, with and without the host's hints."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(4, 8, V, generator=generator) * 3).to(device)
    u = torch.rand(4, 8, generator=generator).to(device)
    temperature = torch.tensor([0.0, 0.8, 1.0, 1.2], device=device)
    top_k = torch.tensor([V, 50, V, 5], device=device)
    top_p = torch.tensor([1.0, 1.0, 0.7, 0.9], device=device)
    together = sample_codes(logits, u, temperature, top_k, top_p)
    for i in range(4):
        one = slice(i, i + 1)
        hints = {"max_top_k": int(top_k[i]), "any_top_p": bool(top_p[i] < 1)}
        alone = sample_codes(logits[one], u[one], temperature[one], top_k[one], top_p[one], **hints)
        assert torch.equal(alone, together[one])
    assert torch.equal(together[0], logits[0].argmax(-1))


def test_ties_at_the_kth_value_survive_and_extreme_draws_stay_inside(device):
    logits = torch.full((1, 8, V), -10.0, device=device)
    logits[..., [3, 500, 900]] = 2.0  # three equal best, top_k 2
    one, k = torch.ones(1, device=device), torch.tensor([2], device=device)
    largest = torch.full((1, 8), 1 - 2.0**-23, device=device)
    assert sample_codes(logits, torch.zeros(1, 8, device=device), one, k, one).unique().tolist() == [3]
    assert sample_codes(logits, largest, one, k, one).unique().tolist() == [900]


def test_delay_step_equals_the_oracle_for_random_batches(device):
    generator = torch.Generator().manual_seed(0)
    B = 16
    oracles = [DelayState() for _ in range(B)]
    delay, left = torch.zeros(B, dtype=torch.int64, device=device), torch.full((B,), -1, device=device)
    finished = torch.zeros(B, dtype=torch.bool)
    for _ in range(60):
        sampled = torch.randint(1010, V, (B, 8), generator=generator)  # EOC now and then, in any codebook
        row, delay, left, done = delay_step(sampled.to(device), delay, left, 1024, 1025)
        for i, oracle in enumerate(oracles):
            if not finished[i]:
                assert row[i].tolist() == oracle.step(sampled[i].tolist())
                assert bool(done[i]) == oracle.done
                finished[i] = oracle.done
    assert finished.sum() > B // 2
