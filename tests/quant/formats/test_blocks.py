"""Reading GGUF's block types: every type against the gguf package, and blocks made by hand."""

import numpy as np
import pytest
import torch

from octavo.quant.formats import blocks

BLOCK_TYPES = [name for name in blocks.TYPES if name not in blocks.FLOATS]


def block(kind: str, **parts: object) -> torch.Tensor:
    """One block [1, bytes] of zeros but for the given bytes: at12=[0x41, ...]."""
    data = torch.zeros(1, blocks.TYPES[kind].nbytes, dtype=torch.uint8)
    for where, values in parts.items():
        begin = int(where.removeprefix("at"))
        data[0, begin : begin + len(values)] = torch.tensor(list(values), dtype=torch.uint8)
    return data


def half(x: float) -> bytes:
    return np.float16(x).tobytes()


def random_rows(kind: str, rows: int, K: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks.TYPES[kind].row_bytes(K)), dtype=np.uint8)


def test_table():
    gguf = pytest.importorskip("gguf")
    for name, kind in blocks.TYPES.items():
        other = gguf.GGMLQuantizationType[name]
        assert (kind.id, kind.weights, kind.nbytes) == (other.value, *gguf.GGML_QUANT_SIZES[other]), name


@pytest.mark.parametrize("kind", blocks.TYPES)
def test_every_bit_as_gguf_reads_it(kind):
    gguf = pytest.importorskip("gguf")
    data = random_rows(kind, 24, 768)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    got = blocks.values(torch.from_numpy(data), kind).numpy()
    known = np.isfinite(want)  # random bytes are sometimes an infinite scale
    assert known.mean() > 0.7
    assert got.dtype == np.float32 and np.array_equal(got[known], want[known])


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_decoded_parts(kind):
    got = blocks.decode(torch.from_numpy(random_rows(kind, 3, 512)), kind)
    assert got.shape == (3, 512) and got.scale.dtype == torch.float32
    assert got.group == (16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32)
    assert got.bits == (4 if kind in ("Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS") else 8)
    assert got.bits == 8 or got.codes.max() <= 15
    assert (got.levels is not None) == kind.startswith("IQ4")


def test_rows_may_be_a_slice():
    data = torch.from_numpy(random_rows("Q4_K", 4, 1024))
    want = blocks.decode(data, "Q4_K").codes[::2, :512]
    assert torch.equal(blocks.decode(data[::2, : 2 * 144], "Q4_K").codes, want)


def test_q4_0_and_iq4_nl_by_hand():
    data = block("Q4_0", at0=half(0.5), at2=[0x2F])
    w = blocks.values(data, "Q4_0")[0]
    assert (w[0], w[16], w[1]) == (3.5, -3.0, -4.0)
    w = blocks.values(data, "IQ4_NL")[0]
    assert (w[0], w[16]) == (56.5, -41.5)


SCALES_AND_MINS = bytes.fromhex("4182c3c44081c2c3010203ff")  # scales 1 2 3 4 17 34 51 63, minima 0 1 2 3 16 32 48 63


def test_q4_k_by_hand():
    header = dict(at0=half(0.5), at2=half(0.25), at4=SCALES_AND_MINS)
    data = block("Q4_K", **header, at16=[0x21], at48=[0x43], at112=[0xF5])
    w = blocks.values(data, "Q4_K")[0]
    assert [w[i] for i in (0, 32, 64, 96, 192, 224)] == [0.5, 1.75, 4.0, 7.25, 115.5, 456.75]
    got = blocks.decode(data, "Q4_K")
    assert (got.scale[0] / 0.5).tolist() == [1, 2, 3, 4, 17, 34, 51, 63]
    assert (got.offset[0] / -0.25).tolist() == [0, 1, 2, 3, 16, 32, 48, 63]


def test_q5_k_by_hand():
    header = dict(at0=half(0.5), at2=half(0.25), at4=SCALES_AND_MINS)
    data = block("Q5_K", **header, at16=[0b10000001], at48=[0x21], at80=[0x43], at144=[0xF5])
    w = blocks.values(data, "Q5_K")[0]
    assert (w[0], w[224]) == (8.5, 960.75)


def test_q6_k_by_hand():
    data = block("Q6_K", at0=[0xA5], at128=[0b11100100], at192=range(1, 17), at208=half(0.5))
    w = blocks.values(data, "Q6_K")[0]
    assert [w[i] for i in (0, 32, 64, 96)] == [-13.5, -24, 25, 56]


def test_what_cannot_be_read():
    row = torch.zeros(1, 144, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no block type 'Q9_X' here; there are F32"):
        blocks.decode(row, "Q9_X")
    with pytest.raises(ValueError, match="143 bytes does not hold whole Q4_K blocks of 144 bytes"):
        blocks.decode(row[:, :143], "Q4_K")
    with pytest.raises(ValueError, match="3 bytes does not hold whole BF16"):
        blocks.values(row[:, :3], "BF16")
    with pytest.raises(ValueError, match="F16 is not quantized"):
        blocks.decode(row, "F16")
    with pytest.raises(ValueError, match="row of 100 weights cannot be stored as Q8_0, whose blocks hold 32"):
        blocks.TYPES["Q8_0"].row_bytes(100)
