"""Writing GGUF's block types: the bytes of ggml where its algorithm is rounding, its error where it is a search."""

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.quant.formats import blocks, kquants

K_QUANTS = ["Q4_K", "Q5_K", "Q6_K"]


def regression_vector() -> tuple[torch.Tensor, torch.Tensor]:
    i = torch.arange(256)
    return ((((37 * i + 11) % 101) - 50) / 50)[None], (1 + i % 7).float()


def weights(rows: int, K: int, heavy_tails: bool = False, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, K, generator=generator) * 0.02
    if heavy_tails:  # Student's t with four degrees of freedom
        w *= (torch.randn(4, rows, K, generator=generator) ** 2).mean(0).rsqrt()
    return w


def relative_error(data: torch.Tensor, kind: str, w: torch.Tensor, importance: torch.Tensor | float = 1) -> float:
    error = blocks.values(data, kind) - w
    return ((error**2 * importance).sum() / (w**2 * importance).sum()).sqrt().item()


@pytest.mark.parametrize(
    "kind, plain, weighted",
    [
        ("Q8_0", "24888b34", "24888b34"),
        ("Q4_0", "6ae4a2ca", "4446c454"),
        ("Q4_K", "dd10d0bc", "216b1a31"),
        ("Q5_K", "3c9b7c97", "a7b538ba"),
        ("Q6_K", "d0eba6b9", "11d3c1fc"),
    ],
)
def test_checksum_of_ggml(kind, plain, weighted):
    w, importance = regression_vector()
    assert f"{zlib.crc32(kquants.encode(w, kind).numpy().tobytes()):08x}" == plain
    assert f"{zlib.crc32(kquants.encode(w, kind, importance).numpy().tobytes()):08x}" == weighted


@pytest.mark.parametrize("heavy_tails", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_bytes_of_ggml(kind, heavy_tails):
    libgguf = pytest.importorskip("libgguf")
    w = weights(24, 512, heavy_tails)
    w[0] = 0
    w[1, :32] = 0.25
    w[2, 5], w[2, 9] = 1.5, -1.5  # the first of equal magnitudes gives the sign
    w[3] = torch.arange(512) % 255 - 127  # whole numbers and halves of the step
    w[4] = w[3] / 2
    w[5] *= 1e-6  # the scale is subnormal in fp16
    w[6, :32] = 0.5 - 2.0**-25  # of a step: plus a half, it would be rounded to one
    w[6, 0] = 127
    want = libgguf.quantize_rows(w.numpy(), blocks.TYPES[kind].id)
    assert kquants.encode(w, kind).numpy().tobytes() == want.tobytes()


@pytest.mark.parametrize("heavy_tails", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [*K_QUANTS, "Q4_0"])
def test_as_good_as_ggml(kind, weighted, heavy_tails):
    libgguf = pytest.importorskip("libgguf")
    w = weights(48, 1024, heavy_tails, seed=1)
    importance = torch.randn(1024, generator=torch.Generator().manual_seed(2)).exp() if weighted else None
    got = kquants.encode(w, kind, importance)
    other = libgguf.quantize_rows(
        w.numpy(), blocks.TYPES[kind].id, imatrix=None if importance is None else importance.numpy()
    )
    want = torch.from_numpy(other).view(torch.uint8).view(got.shape)
    cost = 1 if importance is None else importance
    ratio = relative_error(got, kind, w, cost) / relative_error(want, kind, w, cost)
    assert 0.995 < ratio < 1.005, ratio
    nbytes = blocks.TYPES[kind].nbytes
    same = (got.view(-1, nbytes) == want.view(-1, nbytes)).all(1).float().mean().item()
    assert same > (0.6 if kind == "Q5_K" else 0.85), same  # sums in another order tip near ties


def affine_rounding(w: torch.Tensor, levels: int) -> torch.Tensor:
    """Smallest to largest in equal steps, 32 weights at a time, with scale and minimum in full precision."""
    groups = w.view(-1, 32)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True)
    step = (high - low) / levels
    return (((groups - low) / step).round() * step + low).view_as(w)


@pytest.mark.parametrize("kind, levels, bound", [("Q4_K", 15, 0.93), ("Q5_K", 31, 0.97)])
def test_the_search_beats_rounding(kind, levels, bound):
    """Although its scales have six bits, and those of plain rounding here 32."""
    w = weights(64, 1024)
    rounding = ((affine_rounding(w, levels) - w).norm() / w.norm()).item()
    assert relative_error(kquants.encode(w, kind), kind, w) < bound * rounding


@pytest.mark.parametrize("kind", [*K_QUANTS, "Q4_0"])
def test_an_importance_moves_the_error_where_it_costs_least(kind):
    w = weights(64, 1024, seed=3)
    importance = (2 * torch.randn(1024, generator=torch.Generator().manual_seed(4))).exp()
    plain, weighted = kquants.encode(w, kind), kquants.encode(w, kind, importance)
    assert relative_error(weighted, kind, w, importance) < 0.8 * relative_error(plain, kind, w, importance)
    assert relative_error(weighted, kind, w) > relative_error(plain, kind, w)


@pytest.mark.parametrize("kind", kquants.ENCODED)
def test_pieces_and_types_of_the_input_do_not_matter(kind, monkeypatch):
    w = weights(9, 512).bfloat16()
    want = kquants.encode(w.float(), kind)
    monkeypatch.setattr(kquants, "CHUNK", 4 * 512)
    assert torch.equal(kquants.encode(w, kind), want)
    assert torch.equal(
        kquants.encode(w.T.contiguous().T, kind, torch.ones(512)), kquants.encode(w, kind, torch.ones(512))
    )
    wide = torch.cat([w, w], 1)
    assert torch.equal(kquants.encode(wide[:, 512:], kind), want)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", kquants.ENCODED)
def test_rows_that_trip_a_search(kind, weighted):
    w = torch.zeros(8, 512)
    w[1] = 0.3
    w[2] = -0.3
    w[3, 100] = 5.0
    w[4] = -4 + weights(1, 512)[0]  # far from zero
    w[5] = 0.3 + 1e-6 * weights(1, 512)[0]
    w[6] = weights(1, 512)[0] * 1e-12  # below what a scale in fp16 can say
    w[7, ::2], w[7, 1::2] = 1, -1
    importance = torch.rand(512, generator=torch.Generator().manual_seed(5)) + 0.5 if weighted else None
    got = blocks.values(kquants.encode(w, kind, importance), kind)
    assert torch.equal(got[0], torch.zeros(512))
    largest = w.abs().amax(1).clamp(min=1e-7)
    bound = {"Q8_0": 0.005, "Q6_K": 0.02, "Q5_K": 0.03, "Q4_K": 0.05, "Q4_0": 0.13}[kind]
    assert ((got - w).abs().amax(1) / largest).max() < bound


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K"])
def test_rows_of_one_number(kind):
    """But for rounding, least squares have no solution there."""
    generator = torch.Generator().manual_seed(6)
    number = torch.rand(200, 1, generator=generator) * 4 - 2
    w = number * (1 + 1e-7 * torch.randn(200, 256, generator=generator))
    error = (blocks.values(kquants.encode(w, kind), kind) - w).abs() / number.abs()
    assert error.max() < 0.02


def test_columns_without_importance_are_not_given_up():
    w = weights(4, 512)
    importance = torch.ones(512)
    importance[:64] = 0
    for kind in (*K_QUANTS, "Q4_0"):
        got = blocks.values(kquants.encode(w, kind, importance), kind)
        assert ((got - w)[:, :64].norm() / w[:, :64].norm()).item() < 0.15, kind


@settings(max_examples=40)
@given(
    kind=st.sampled_from(kquants.ENCODED),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-3, 3),
    outliers=st.integers(0, 5),
    shift=st.floats(-2, 2),
    weighted=st.booleans(),
)
def test_no_weight_is_far_off(kind, seed, exponent, outliers, shift, weighted):
    """Root mean square error over the largest magnitude of a block of 256, whatever the weights."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(2, 512, generator=generator) + shift
    for _ in range(outliers):
        w[:, torch.randint(512, (1,), generator=generator)] *= 30
    w *= 10.0**exponent
    importance = torch.randn(512, generator=generator).exp() if weighted else None
    got = blocks.values(kquants.encode(w, kind, importance), kind)
    error = (got - w).view(-1, 256).square().mean(1).sqrt() / w.view(-1, 256).abs().amax(1)
    assert error.max() < {"Q8_0": 0.003, "Q6_K": 0.012, "Q5_K": 0.02, "Q4_K": 0.04, "Q4_0": 0.06}[kind], error


def test_what_cannot_be_written():
    w = torch.ones(2, 320)
    with pytest.raises(ValueError, match="row of 320 weights cannot be stored as Q4_K, whose blocks hold 256"):
        kquants.encode(w, "Q4_K")
    with pytest.raises(ValueError, match="Q2_K cannot be written here; choose one of Q8_0"):
        kquants.encode(w[:, :256], "Q2_K")
    with pytest.raises(ValueError, match="no block type 'q8_0'"):
        kquants.encode(w, "q8_0")
    with pytest.raises(ValueError, match="320 columns wants 320 numbers, not \\(256,\\)"):
        kquants.encode(w, "Q4_0", torch.ones(256))
    for bad in (torch.zeros(320), torch.full((320,), -1.0), torch.full((320,), float("nan"))):
        with pytest.raises(ValueError, match="finite number, not negative, and not zero for every column"):
            kquants.encode(w, "Q4_0", bad)


def test_threads(monkeypatch):
    """Pieces in several threads give the same bytes; torch keeps its number of threads, after an error too."""
    w = weights(16, 512)
    want = kquants.encode(w, "Q6_K")
    monkeypatch.setattr(kquants, "CHUNK", 512)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(kquants.encode(w, "Q6_K"), want)
        assert torch.get_num_threads() == 3

        def broken(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
            raise MemoryError(f"with {torch.get_num_threads()} thread")

        monkeypatch.setitem(kquants._ENCODE, "Q6_K", broken)
        with pytest.raises(MemoryError, match="with 1 thread"):
            kquants.encode(w, "Q6_K")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
