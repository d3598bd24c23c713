"""The end of a row: the kernel against its reference, code for code; the reference against fp64 and scalar oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from octavo.kernels import launch
from octavo.kernels.philox import uniform
from octavo.kernels.sample_row import sample_row, sample_row_ref
from octavo.runtime.delay import DelayState

V = 1026
BOC, EOC = 1024, 1025
OFF = 2048  # top_k; no vocabulary is larger

# What a lane holds, its type and its default
LANES = {
    "row": (torch.int32, 9),
    "seed": (torch.int64, 5),
    "temperature": (torch.float32, 1.0),
    "top_k": (torch.int32, OFF),
    "top_p": (torch.float32, 1.0),
    "left": (torch.int32, -1),
    "slot": (torch.int32, None),  # lane b has slot b + 1; 0 is the dummy
}


@pytest.fixture(params=["reference", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def op(request):
    """Either implementation, and where its tensors live: the kernel on the CPU, interpreted, or on CUDA, compiled."""
    if request.param == "reference":
        yield sample_row_ref, torch.device("cpu")
        return
    pytest.importorskip("triton")
    if (request.param == "cuda") != torch.cuda.is_available():
        pytest.skip("not how kernels run on this machine")
    with launch.forced():
        yield sample_row, torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample(op, logits: torch.Tensor, boc: int = BOC, eoc: int = EOC, rows: int | None = None, **lanes):
    """One row from logits [B, C, V], on views into NaN or -9. Returns codes [B + 1, R, C], out and left, on the CPU."""
    function, device = op
    B, C, V = logits.shape
    tensors = {}
    for name, (dtype, default) in LANES.items():
        value = torch.as_tensor(lanes.get(name, torch.arange(1, B + 1) if default is None else default))
        tensors[name] = torch.full((B, 3), -9, dtype=dtype, device=device)[:, 1].copy_(value)
    tensors["top_k"].clamp_(max=V)
    R = int(tensors["row"].max()) + 2 if rows is None else rows
    codes = torch.full((B + 1, R, C), -9, dtype=torch.int16, device=device)
    out = torch.full((B, C + 3), -9, dtype=torch.int16, device=device)
    wide = torch.full((B, C * V + 7), torch.nan, dtype=logits.dtype, device=device)[:, : C * V]
    function(wide.copy_(logits.flatten(1)), *tensors.values(), codes, out[:, : C + 1], boc, eoc)
    assert (out[:, C + 1 :] == -9).all()
    return codes.cpu(), out[:, : C + 1].cpu(), tensors["left"].cpu()


def draw(op, logits: torch.Tensor, **lanes) -> torch.Tensor:
    """codes [B, C] int64."""
    _, out, _ = sample(op, logits, **lanes)
    return out[:, :-1].long()


def random_lanes(B: int, V: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Greedy, top-k, top-p, both and neither; in the ramp-in, after it and in the ramp-out."""

    def one_of(*values):
        return torch.tensor(values)[torch.randint(len(values), (B,), generator=generator)]

    return {
        "row": one_of(0, 1, 5, 8, 20, 1234),
        "seed": torch.randint(2**62, (B,), generator=generator),
        "temperature": one_of(0.0, 0.05, 0.8, 1.0, 1.3),
        "top_k": one_of(1, 2, 5, V, V),
        "top_p": one_of(0.3, 0.9, 1.0, 1.0),
        "left": one_of(-1, 0, 1, 6),
    }


@pytest.mark.parametrize(
    "B, C, V, dtype",
    [
        (7, 8, 1026, torch.bfloat16),
        (6, 3, 1026, torch.float32),
        (9, 3, 37, torch.float32),
        (5, 2, 2048, torch.float16),
        (3, 2, 1, torch.float32),
    ],
    ids=str,
)
def test_kernel_and_reference_give_the_same_row(B, C, V, dtype, triton_device):
    generator = torch.Generator().manual_seed(B)
    logits = (torch.randn(B, C, V, generator=generator) * 3).to(dtype)
    logits[0] = logits[0].round()  # ties
    lanes = random_lanes(B, V, generator)
    got = sample((sample_row, triton_device), logits, V - 2, V - 1, **lanes)
    want = sample((sample_row_ref, "cpu"), logits, V - 2, V - 1, **lanes)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_kernel_and_reference_draw_the_same_for_many_seeds(triton_device):
    """Most lanes do not search a threshold: those are quick to interpret."""
    B, C, V = 60, 2, 300
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1, C, V, generator=generator) * 2).expand(B, C, V)
    lanes = {
        "row": torch.randint(2, 2048, (B,), generator=generator),
        "seed": torch.randint(2**62, (B,), generator=generator),
        "top_k": torch.full((B,), OFF),
    }
    lanes["top_k"][::6] = 20
    got, want = draw((sample_row, triton_device), logits, **lanes), draw((sample_row_ref, "cpu"), logits, **lanes)
    assert torch.equal(got, want)
    assert got.unique().numel() > 30


def kept_set(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, one entry after the other, in fp64."""
    z = logits.astype(np.float64) / temperature
    keep = z >= np.sort(z)[-min(top_k, len(z))]
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


SETTINGS = [(0.8, 50, 1.0), (1.0, OFF, 1.0), (0.7, OFF, 0.9), (1.3, 30, 0.8), (0.05, 5, 1.0)]


@pytest.mark.parametrize("temperature, top_k, top_p", SETTINGS)
def test_draws_follow_the_softmax_of_what_is_kept(temperature, top_k, top_p):
    """Chi-square over 20,000 draws, one codebook of fixed random logits; nothing outside the kept set is ever drawn."""
    logits = torch.randn(V, generator=torch.Generator().manual_seed(3)) * 3
    counts = draw_counts((sample_row_ref, "cpu"), logits, 20_000, temperature, top_k, top_p)
    check_counts(counts, kept_set(logits.numpy(), temperature, top_k, top_p))


def test_the_kernels_draws_follow_the_softmax(triton_device):
    """Few draws of few codes where it is interpreted."""
    n, codes, settings = (20_000, V, SETTINGS) if triton_device.type == "cuda" else (240, 11, SETTINGS[1:2])
    logits = torch.randn(codes, generator=torch.Generator().manual_seed(3)) * (3 if codes == V else 1)
    for parameters in settings:
        counts = draw_counts((sample_row, triton_device), logits, n, *parameters)
        check_counts(counts, kept_set(logits.numpy(), *parameters))


def draw_counts(op, logits, n, temperature, top_k, top_p, seed=5):
    """Rows 8, 9, 10, ... of one seed, a hundred at once."""
    counts = np.zeros(len(logits), int)
    for first in range(8, 8 + n // 8, 100):
        row = torch.arange(first, min(first + 100, 8 + n // 8))
        every_lane = logits.expand(len(row), 8, -1)
        codes = draw(op, every_lane, row=row, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
        counts += np.bincount(codes.flatten().numpy(), minlength=len(counts))
    return counts


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


def test_draws_from_real_logits(shared):
    """The real model's first eight rows: the ramp-in property, and the distribution of codebook 0's draws."""
    path = shared / "data" / "real_logits_8x8x1026_f32.bin"
    if not path.is_file():
        pytest.skip(f"needs {path.name} of ../shared/data, which is not here")
    logits = torch.from_numpy(np.fromfile(path, "<f4")).view(8, 8, V)
    for step in range(8):
        best = logits[step].argmax(-1)
        assert (best[step + 1 :] == BOC).all(), "codebooks that have not begun prefer BOC"
        assert (best[: step + 1] < BOC).all(), "codebooks that have begun prefer a code"
    for step in (0, 7):
        for parameters in SETTINGS[:4]:
            counts = draw_counts((sample_row_ref, "cpu"), logits[step, 0], 4_000, *parameters, seed=step)
            check_counts(counts, kept_set(logits[step, 0].numpy(), *parameters))


def test_each_lane_has_its_own_parameters(op):
    """Mixed greedy, top-k and top-p lanes draw what each draws alone."""
    logits = torch.randn(4, 2, 50, generator=torch.Generator().manual_seed(1)) * 3
    lanes = {
        "row": torch.tensor([9, 700, 9, 20]),
        "seed": torch.tensor([1, 2, 2**60 + 1, 2**60 + 2]),
        "temperature": torch.tensor([0.0, 0.8, 1.0, 1.2]),
        "top_k": torch.tensor([OFF, 10, OFF, 5]),
        "top_p": torch.tensor([1.0, 1.0, 0.7, 0.9]),
    }
    together = draw(op, logits, **lanes)
    for i in range(4):
        one = slice(i, i + 1)
        assert torch.equal(draw(op, logits[one], **{name: value[one] for name, value in lanes.items()}), together[one])
    assert torch.equal(together[0], logits[0].argmax(-1))


def test_flat_logits_give_the_draw_itself(op):
    """Every code has the same weight: the code is floor(u * V), without a rounding anywhere."""
    row = torch.arange(8, 28)
    for codes in (64, 1000):
        u = uniform(5, row[:, None] * 2 + torch.arange(2)).double()
        got = draw(op, torch.full((20, 2, codes), -3.5), row=row, temperature=0.7)
        assert torch.equal(got, (u * codes).long())


def test_one_hot_logits_leave_no_choice(op):
    logits = torch.full((8, 2, V), -100.0)
    hot = torch.tensor([0, 1, 500, 1000, 1023, 1024, 1025, 7])
    logits[torch.arange(8), :, hot] = 0
    assert torch.equal(draw(op, logits, row=torch.arange(8, 16)), hot[:, None].expand(8, 2))


def test_greedy_takes_the_first_of_the_best(op):
    logits = torch.zeros(3, 2, V)
    logits[0, :, 5] = -0.0  # a tie too
    logits[1, :, [400, 401, 1025]] = 2.0
    assert draw(op, logits, temperature=0.0, top_k=3).tolist() == [[0, 0], [400, 400], [0, 0]]


def test_ties_at_the_kth_value_survive(op):
    """Three equal best and top_k 2: all three are drawn, nothing else is. With top_p they all stay as well."""
    logits = torch.full((16, 2, V), -10.0)
    logits[..., [3, 500, 900]] = 2.0
    logits[..., 17] = 1.0
    p = torch.tensor([1.0, 0.5]).repeat(8)
    assert draw(op, logits, row=torch.arange(8, 24), top_k=2, top_p=p).unique().tolist() == [3, 500, 900]


def test_top_k_may_leave_one_code_out(op):
    assert (draw(op, torch.tensor([0.0, 0.1]).expand(16, 2, 2), row=torch.arange(8, 24), top_k=1) == 1).all()


def test_zeros_of_either_sign_tie(op):
    logits = torch.full((12, 2, 40), -10.0)
    logits[..., [3, 5]], logits[..., [4, 6]] = 0.0, -0.0
    assert draw(op, logits, row=torch.arange(8, 20), top_k=1).unique().tolist() == [3, 4, 5, 6]


def test_the_smallest_and_the_largest_draw_stay_inside(op):
    """Two of the few (seed, row) below 2048 rows that draw 0 and 1 - 2^-23 for their first codebook (of eight)."""
    seed, row = torch.tensor([3786, 3507]), torch.tensor([1853, 572])
    assert uniform(seed, row * 8).tolist() == [0.0, 1 - 2.0**-23]
    logits = torch.full((2, 8, V), -10.0)
    logits[..., [3, 500, 900]] = 2.0
    codes = draw(op, logits, seed=seed, row=row, top_k=2)
    assert codes[:, 0].tolist() == [3, 900]


BROKEN = {
    "all nan": [torch.nan] * 6,
    "one nan": [0.0, torch.nan, 1.0, 0.0, 1.0, 0.0],
    "all -inf": [-torch.inf] * 6,
    "masked": [-torch.inf, 0.0, -torch.inf, 0.5, -torch.inf, 0.3],
    "inf": [0.0, 1.0, torch.inf, 0.0, torch.inf, torch.nan],
    "all inf": [torch.inf] * 6,
    "largest": [3e38, -3e38, 3.3e38, 0.0, -3.3e38, -torch.inf],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_k, top_p", [(OFF, 1.0), (2, 0.5)])
def test_broken_logits_still_give_a_code(dtype, top_k, top_p, op):
    logits = torch.tensor(list(BROKEN.values()))[:, None].repeat(1, 2, 1).to(dtype)
    for temperature in (0.0, 0.8):
        codes = draw(op, logits, temperature=temperature, top_k=top_k, top_p=top_p)
        assert ((codes >= 0) & (codes < 6)).all()
        allowed = dict(zip(BROKEN, codes.tolist(), strict=True))
        assert set(allowed["one nan"]) <= {0, 2, 3, 4, 5}
        assert set(allowed["masked"]) <= {1, 3, 5}
        assert set(allowed["inf"]) <= {2, 4}
        assert torch.equal(
            codes, draw((sample_row_ref, "cpu"), logits, temperature=temperature, top_k=top_k, top_p=top_p)
        )


def test_idle_lanes_touch_the_dummy_slot_only(op):
    logits = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(0))
    lanes = {"row": torch.tensor([9, 0, 10, 0]), "slot": torch.tensor([3, 0, 1, 0])}
    codes, out, left = sample(op, logits, rows=12, **lanes)
    assert torch.equal(codes[3, 9], out[0, :2]) and torch.equal(codes[1, 10], out[2, :2])
    codes[3, 9] = codes[1, 10] = codes[0, 0] = -9
    assert (codes == -9).all()
    assert left.tolist() == [-1] * 4 and out[:, 2].tolist() == [0] * 4


def test_a_row_beyond_the_store_spoils_no_neighbour(triton_device):
    codes, out, _ = sample((sample_row, triton_device), torch.zeros(2, 2, 40), rows=12, row=torch.tensor([12, 13]))
    assert (codes == -9).all() and (out >= 0).all()


def test_rows_equal_the_oracle_for_random_batches(op):
    """Rows, state and end of the batched delay machine. Where an utterance has ended, another begins in its lane."""
    kernel = op[0] is sample_row
    B, rows = (3, 34) if kernel else (16, 60)
    generator = torch.Generator().manual_seed(0)
    oracles, row = [DelayState() for _ in range(B)], torch.zeros(B, dtype=torch.int64)
    left, ended = torch.full((B,), 3, dtype=torch.int32), 0  # of who sat here before
    for _ in range(rows):
        sampled = torch.randint(1016 if kernel else 1010, V, (B, 8), generator=generator)  # EOC now and then
        logits = torch.zeros(B, 8, V).scatter_(2, sampled[..., None], 1.0)
        codes, out, left = sample(op, logits, temperature=0.0, row=row, left=left)
        for i, oracle in enumerate(oracles):
            assert out[i, :8].tolist() == codes[i + 1, row[i]].tolist() == oracle.step(sampled[i].tolist())
            assert left[i] == (-1 if oracle.left is None else oracle.left)
            assert bool(out[i, 8]) == oracle.done
            row[i] += 1
            if oracle.done:
                oracles[i], row[i], ended = DelayState(), 0, ended + 1
    assert ended >= B // 2
