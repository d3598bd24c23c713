"""NF4 as bitsandbytes stores it, with scales in full and nested."""

import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quant.formats import nf4


def crc(tensor: torch.Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().numpy().tobytes()):08x}"


def regression_weights() -> torch.Tensor:
    i = torch.arange(17 * 1024)
    return ((((37 * i + 11) % 101) - 50) / 50 * (1 + i // 64 % 7) / 100).view(17, 1024)


def state_of(tensors: dict[str, torch.Tensor]) -> dict:
    return json.loads(bytes(tensors[nf4.STATE].tolist()))


@pytest.mark.parametrize("nested", [False, True])
def test_bytes_of_bitsandbytes(nested):
    """Checksums of what bitsandbytes 0.50.2 writes for these weights and reads back (quantize_4bit, dequantize_4bit);
    272 blocks: the second nested one is short."""
    tensors = nf4.encode(regression_weights(), nested=nested)
    want = {"weight": "bf753d1f", "weight.absmax": "7e2cbfb8", "weight.quant_map": "c471f81a"}
    if nested:
        want |= {
            "weight.absmax": "8eb4410a",
            "weight.nested_absmax": "b1717f2d",
            "weight.nested_quant_map": "1b137aeb",
        }
    assert {name: crc(tensor) for name, tensor in tensors.items() if name != nf4.STATE} == want
    assert tensors["weight"].shape == (17 * 1024 // 2, 1) and tensors["weight.absmax"].shape == (272,)
    assert crc(nf4.decode(tensors, (17, 1024)).dequantize()) == ("61b6af65" if nested else "6f58caaf")


def test_state():
    state = state_of(nf4.encode(torch.ones(2, 128)))
    assert state == {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 128]}
    state = state_of(nf4.encode(torch.ones(2, 128), nested=True, dtype=torch.float16))
    assert state.pop("nested_offset") == 1.0
    assert state == {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float16",
        "shape": [2, 128],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
    }


def test_levels_are_halves_of_normal_quantiles():
    """The construction of QLoRA: 8 quantiles above zero and 7 below, evenly spaced in probability, over the largest."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    levels = torch.cat([above, torch.zeros(1), below]).sort().values
    torch.testing.assert_close(torch.tensor(nf4.LEVELS), levels / levels.max(), atol=1e-5, rtol=0)


def test_nested_levels():
    levels = nf4.nested_levels()
    assert len(levels.unique()) == 256 and levels[127] == 0 and levels[-1] == 1
    assert torch.equal(levels[:127], -levels[128:255].flip(0))
    torch.testing.assert_close(levels[128:131], torch.tensor([5.5e-7, 3.25e-6, 7.75e-6]))
    assert levels[254].item() == pytest.approx(1 - 0.9 / 128)


def test_first_weight_in_the_high_half():
    w = torch.zeros(1, 64)
    w[0, 0], w[0, 1] = -2.0, 2.0
    tensors = nf4.encode(w)
    assert tensors["weight"][:2, 0].tolist() == [0x0F, 0x77] and tensors["weight.absmax"].tolist() == [2.0]
    got = nf4.decode(tensors, (1, 64))
    assert got.codes[0, :3].tolist() == [0, 15, 7] and got.group == 64
    assert torch.equal(got.dequantize(), w)


@given(seed=st.integers(0, 2**31), exponent=st.integers(-6, 4), nested=st.booleans(), half=st.booleans())
def test_round_trip(seed, exponent, nested, half):
    w = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    w = w.bfloat16() if half else w
    got = nf4.decode(nf4.encode(w, nested=nested), (3, 128)).dequantize()
    largest = w.float().view(3, 2, 64).abs().amax(2, keepdim=True).expand(3, 2, 64).reshape(3, 128)
    widest = 0.1519  # half of the step from -1 to the next level, the largest one
    error = (got - w.float()).abs()
    assert (error <= (widest + 0.05 * nested) * largest).all()  # a nested scale moves by some percent of the mean


def test_zeros_and_other_block_sizes():
    zeros = nf4.encode(torch.zeros(2, 64))
    assert (zeros["weight"] == 0x77).all() and not nf4.decode(zeros, (2, 64)).dequantize().any()
    tensors = nf4.encode(torch.ones(2, 64))
    for block in (32, 64):
        tensors[nf4.STATE] = state_bytes(tensors, blocksize=block)
        tensors["weight.absmax"] = torch.arange(1, 128 // block + 1).float()
        got = nf4.decode(tensors, (2, 64))
        assert got.group == block and torch.equal(got.dequantize().view(-1, block)[:, 0], tensors["weight.absmax"])


def test_weights_stored_as_another_type():
    w = regression_weights()
    tensors = nf4.encode(w)
    want = nf4.decode(tensors, (17, 1024)).codes
    tensors["weight"] = tensors["weight"].view(-1).view(torch.bfloat16)[:, None]
    assert torch.equal(nf4.decode(tensors, (17, 1024)).codes, want)


def state_bytes(tensors: dict[str, torch.Tensor], **changes: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(state_of(tensors) | changes).encode()), dtype=torch.uint8)


def test_what_cannot_be_written_or_read():
    with pytest.raises(ValueError, match="row of 96 weights cannot be stored as NF4, whose blocks hold 64"):
        nf4.encode(torch.ones(2, 96))
    tensors = nf4.encode(torch.ones(2, 128), nested=True)
    for name in tensors:
        with pytest.raises(ValueError, match="not as bitsandbytes writes them: KeyError"):
            nf4.decode({key: value for key, value in tensors.items() if key != name}, (2, 128))
    damage: list[tuple[str, dict]] = [
        ("JSONDecodeError", {nf4.STATE: torch.tensor(list(b"{no"), dtype=torch.uint8)}),
        ("TypeError", {nf4.STATE: torch.tensor([ord("3")], dtype=torch.uint8)}),
        ("these say fp4", {nf4.STATE: state_bytes(tensors, quant_type="fp4")}),
        (r"these say nf4, shape \(2, 64\)", {nf4.STATE: state_bytes(tensors, shape=[2, 64])}),
        ("these hold 48", {nf4.STATE: state_bytes(tensors, blocksize=48)}),
        ("these hold 0", {nf4.STATE: state_bytes(tensors, blocksize=0)}),
        ("127 bytes", {"weight": tensors["weight"][1:]}),
        (r"\(15,\) levels", {"weight.quant_map": torch.zeros(15)}),
        ("with 3 scales", {"weight.absmax": tensors["weight.absmax"][1:]}),
        ("4 nested scales do not fit 2 blocks", {"weight.nested_absmax": torch.ones(2)}),
        ("4 nested scales do not fit 1 blocks", {"weight.absmax": torch.ones(4)}),
        ("4 nested scales do not fit 1 blocks of -1", {nf4.STATE: state_bytes(tensors, nested_blocksize=-1)}),
    ]
    for sentence, change in damage:
        with pytest.raises(ValueError, match=sentence):
            nf4.decode(tensors | change, (2, 128))
