"""Codec as a whole: its two directions, what it refuses, when it loads what, threads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec
from octavo.runtime.errors import AudioError, CheckpointError, RequestError

from .utterances import store


def test_decode_of_time_major_codes(codec: Codec, codes: torch.Tensor) -> None:
    want = codec.decoder(codes[:1])[0].numpy()
    for given in (codes[0].T, codes[0].T.numpy().astype(np.int16), codes[0].T.int()):
        sound = codec.decode(given)
        assert sound.dtype == np.float32 and sound.shape == (60 * 960,)
        assert np.array_equal(sound, want)


def test_decode_of_nothing(codec: Codec) -> None:
    assert codec.decode(np.zeros((0, 8), np.int16)).shape == (0,)


@pytest.mark.parametrize("wrong", [np.zeros((8, 5), int), np.zeros(8, int), np.zeros((5, 8), np.float32)])
def test_decode_refuses(codec: Codec, wrong: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"integers of shape \[T, 8\]"):
        codec.decode(wrong)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (np.zeros(0, np.float32), "mono"),
        (np.zeros((2, 24_000), np.float32), "mono"),
        (np.full(24_000, np.nan, np.float32), "NaN"),
        (np.full(24_000, np.inf, np.float32), "NaN"),
    ],
)
def test_encode_refuses(codec: Codec, wrong: np.ndarray, sentence: str) -> None:
    with pytest.raises(AudioError, match=sentence):
        codec.encode(wrong)


def test_encoder_is_loaded_late_and_dropped(reference: Any, voiced: np.ndarray) -> None:
    weights = Weights(reference.state_dict())
    codec = Codec.load(weights, "cpu")
    assert "fc.weight" not in weights.taken
    codes = codec.encode(voiced[:24_000])
    assert "fc.weight" in weights.taken and codec._encoder is not None
    assert not any("embed_avg" in name or name.startswith(("decoder_semantic", "fc1")) for name in weights.taken)
    codec.drop_encoder()
    assert codec._encoder is None
    assert np.array_equal(codec.encode(voiced[:24_000]), codes)


def test_without_an_encoder(reference: Any, codec: Codec, codes: torch.Tensor) -> None:
    parts = ("acoustic_decoder.", "fc2.", "quantizer.")
    only = {name: tensor for name, tensor in reference.state_dict().items() if name.startswith(parts)}
    decoder = Codec.load(Weights(only), "cpu")
    assert np.array_equal(decoder.decode(codes[0].T), codec.decode(codes[0].T))
    with pytest.raises(CheckpointError, match="no codec encoder"):
        decoder.encode(np.zeros(24_000, np.float32))


def test_fingerprint_is_of_the_meaning_of_codes(reference: Any, codec: Codec) -> None:
    tensors = dict(reference.state_dict())
    stored_otherwise = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert Codec.load(Weights(stored_otherwise), "cpu").fingerprint == codec.fingerprint
    tensors["acoustic_decoder.conv2.bias"] = tensors["acoustic_decoder.conv2.bias"] + 1
    assert Codec.load(Weights(tensors), "cpu").fingerprint == codec.fingerprint
    tensors["quantizer.quantizers.7.codebook.embed"] = tensors["quantizer.quantizers.7.codebook.embed"].roll(1, 0)
    assert Codec.load(Weights(tensors), "cpu").fingerprint != codec.fingerprint


def test_threads(reference: Any, codec: Codec, voiced: np.ndarray, codes: torch.Tensor) -> None:
    shared = Codec.load(Weights(reference.state_dict()), "cpu")
    clips = [voiced[i * 5_000 :][:24_000] for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        encoded = pool.map(shared.encode, clips)
        decoded = pool.map(lambda T: shared.decode(codes[0, :, :T].T), (5, 10, 20, 40))
        for got, clip in zip(encoded, clips, strict=True):
            assert np.array_equal(got, codec.encode(clip))
        for got, T in zip(decoded, (5, 10, 20, 40), strict=True):
            assert np.array_equal(got, codec.decode(codes[0, :, :T].T))


def test_there_and_back(codec: Codec, voiced: np.ndarray) -> None:
    codes = codec.encode(voiced)
    assert codes.shape == (75, 8) and codes.min() >= 0 and codes.max() < 1024
    assert codec.decode(codes).shape == (72_000,)


def test_bf16_checkpoint(reference: Any, codec: Codec, voiced: np.ndarray) -> None:
    """The published tensors are bf16; the codec computes in fp32 all the same."""
    stored = {name: tensor.bfloat16() for name, tensor in reference.state_dict().items()}
    loaded = Codec.load(Weights(stored), "cpu")
    codes = codec.encode(voiced[:24_000])
    assert np.array_equal(loaded.encode(voiced[:24_000]), codes)
    assert np.array_equal(loaded.decode(codes), codec.decode(codes))


def test_on_device(reference: Any, codec: Codec, codes: torch.Tensor, device: torch.device) -> None:
    """Both directions and the stream, where the tensors lie somewhere else."""
    there = Codec.load(Weights(reference.state_dict()), device)
    want = codec.decode(codes[0].T)
    got = there.decode(codes[0].T)
    limit = 1e-5 if device.type == "cpu" else 1e-4  # the kernels keep 16 bits of each activation
    assert np.linalg.norm(got - want) < limit * np.linalg.norm(want)
    rows = torch.zeros(2, 67, 8, dtype=torch.int16, device=device)
    store(rows, 1, codes[0])
    stream = there.stream(rows)
    for _ in range(0, 70, 14):
        stream.push([1], [14], [60])
    pushed = np.concatenate([samples for _, _, samples in stream.collect()])
    assert np.linalg.norm(pushed - want) < limit * np.linalg.norm(want)
    clip = want[:30_000] / np.abs(want).max()
    assert np.mean(there.encode(clip) == codec.encode(clip)) > 0.99  # another order of additions may turn a near tie
