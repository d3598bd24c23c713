"""What an engine holds on its device, part by part, computed from shapes before anything is loaded.

Tensors that stay are counted to the byte. Workspaces are counted as the most that may be alive at one moment. What no
shape tells (a CUDA context, a captured graph, a Python process) is assumed: the constants say how much, and why.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from octavo.kernels.cpu_linear import arrange
from octavo.kernels.decode_attention import SPLITS_ANYWHERE

from .codec.config import DILATIONS, SAMPLE_RATE, CodecConfig
from .codec.kernels import CAPACITY, sizes
from .codec.layout import decoder_layout, encoder_layout
from .codec.stages import pass_bytes
from .codec.whole import CAPACITY as WHOLE_CAPACITY
from .config import EngineConfig, ModelConfig
from .graph import row_sizes
from .progress import MAX_FRAMES

MiB = 1 << 20
FP32 = 4  # bytes; the codec is fp32 on every device

# Assumed. A CUDA context with PyTorch's own kernels takes 300 to 500 MiB; cuBLAS takes a workspace of 32 MiB (Hopper;
# less elsewhere) for each stream in each thread that calls it: where graphs are captured, where prompts run, where
# recordings are encoded; then compiled kernels.
CUDA_CONTEXT = 672 * MiB
# Assumed. Some 260 kernels in a captured row, 30 in a captured push; the driver keeps their nodes and parameters.
GRAPH, CODEC_GRAPH = 16 * MiB, 2 * MiB
# The caching allocator serves large tensors in blocks of 2 MiB and from segments of 20 MiB, of which each pool may have
# one that is half empty.
CUDA_BLOCK, CUDA_SEGMENT = 2 * MiB, 20 * MiB
# Assumed. Python, PyTorch's libraries and its thread pools; the rest of this page's parts not included.
HOST_PROCESS = 512 * MiB

LOOKAHEAD = 10  # frames that a flush pushes behind the last ones
LONGEST_REFERENCE = 30  # seconds of a recording
# How often the widest activation is there at once: a unit's input, its window, two products, a convolution's workspace.
ENCODER_COPIES = DECODER_COPIES = 5


def memory_parts(
    model: ModelConfig,
    codec: CodecConfig,
    dtype: torch.dtype,
    device: torch.device,
    config: EngineConfig,
    encoder: bool,
    body: int | None = None,
) -> dict[str, int]:
    """Name -> bytes. encoder: recordings are encoded on this device. body: of the layers' matrices and all norms, where
    they are quantized."""
    cuda = device.type == "cuda"
    parts = {
        "language model": _body(model, dtype, cuda) if body is None else body,
        "audio table, head": _tables(model, dtype, cuda),
        "KV cache": kv_row(model, dtype) * config.page_size * (config.num_pages + 1),  # page 0 is nobody's
        "codec decoder": _decoder(codec),
        "codec state": _codec_state(codec, config, cuda),
        "requests": _requests(model, dtype, config, cuda),
        "row workspace": _rows(model, dtype, config, cuda),
        "prompt workspace": _prompts(model, dtype, config, cuda) + (body is not None) * _plain(model, dtype),
        "codec workspace": _codec_passes(codec) if cuda else _codec_push(codec, config),
        "voice encoder": _encoder(codec) if encoder else 0,
    }
    return parts | ({"CUDA": _cuda(config)} if cuda else {"process": HOST_PROCESS})


def kv_row(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one row of the KV cache, in all layers."""
    return model.num_layers * 2 * model.kv_size * dtype.itemsize


def body_values(model: ModelConfig) -> dict[str, int]:
    """Values of each of the layers' matrices, and of all norms together."""
    c, hidden, ffn = model, model.hidden_size, model.intermediate_size
    norms = model.num_layers * (2 * hidden + (c.num_heads + c.num_kv_heads) * c.head_dim) + hidden
    return {
        "qkv": (c.q_size + 2 * c.kv_size) * hidden,
        "o": hidden * c.q_size,
        "gate_up": 2 * ffn * hidden,
        "down": hidden * ffn,
        "norms": norms,
    }


def _body(model: ModelConfig, dtype: torch.dtype, cuda: bool) -> int:
    values = body_values(model)
    norms = values.pop("norms") * dtype.itemsize
    return model.num_layers * sum(_block(n * dtype.itemsize, cuda) for n in values.values()) + norms


def _plain(model: ModelConfig, dtype: torch.dtype) -> int:
    """Many rows are multiplied with a quantized matrix in plain numbers, made for that product: the largest."""
    values = body_values(model)
    values.pop("norms")
    return dtype.itemsize * max(values.values())


def _tables(model: ModelConfig, dtype: torch.dtype, cuda: bool) -> int:
    """The table that embeds audio rows. It is the head as well, unless it is untied or the CPU wants it laid out apart.
    The text embedding is a mapped file on the host."""
    table = _block(model.num_codebooks * model.codebook_vocab * model.hidden_size * dtype.itemsize, cuda)
    return table * (1 if model.tied_audio and (cuda or not _laid_out_apart(dtype)) else 2)


def _laid_out_apart(dtype: torch.dtype) -> bool:
    small = torch.zeros(64, 64, dtype=dtype)
    arranged = arrange(small)
    return arranged.is_mkldnn or arranged.untyped_storage().data_ptr() != small.untyped_storage().data_ptr()


def _decoder(codec: CodecConfig) -> int:
    layers = {name: shape for name, shape in decoder_layout(codec).items() if name.startswith("acoustic_decoder.")}
    values = sum(map(math.prod, layers.values()))
    values += sum(math.prod(shape) for name, shape in layers.items() if name.endswith("alpha"))  # and its reciprocal
    values += sum((s - 1) * width for s, width in zip(codec.strides, codec.widths[1:], strict=True))  # repeated biases
    return FP32 * (values + (codec.codebooks * codec.codebook_size + 1) * codec.latent)


def _encoder(codec: CodecConfig) -> int:
    """Its weights, once it is loaded, and the activations of the longest recording."""
    assert codec.encoder is not None
    layout = encoder_layout(codec)
    layout |= {name: shape for name, shape in decoder_layout(codec).items() if name.startswith("quantizer.")}
    values = sum(map(math.prod, layout.values()))
    values += sum(math.prod(shape) for name, shape in layout.items() if name.endswith("alpha"))
    widest = LONGEST_REFERENCE * SAMPLE_RATE * codec.encoder.widths[0]
    return FP32 * (values + ENCODER_COPIES * widest)


def state_values(codec: CodecConfig) -> int:
    """What the streaming decoder remembers of one slot: the tails of its layers' inputs."""
    values = 6 * codec.latent + 6 * codec.widths[-1]
    for cin, cout in pairwise(codec.widths):
        values += cin + 6 * sum(DILATIONS) * cout
    return values


def _codec_state(codec: CodecConfig, config: EngineConfig, cuda: bool) -> int:
    slots = config.num_slots + 1  # the last is nobody's
    # CUDA: one set is read while the other is written, and previews have a seat of their own.
    return FP32 * state_values(codec) * (2 * (slots + 1) if cuda else slots)


def _codec_passes(codec: CodecConfig) -> int:
    """CUDA: of the stream, and of `Codec.decode`, which makes a stream of one slot for itself when first called."""
    return pass_bytes(codec, CAPACITY) + pass_bytes(codec, WHOLE_CAPACITY) + FP32 * 2 * 2 * state_values(codec)


def _codec_push(codec: CodecConfig, config: EngineConfig) -> int:
    """The CPU's activations when everybody's longest push falls together."""
    samples, widest = 1, 0
    for width, stride in zip(codec.widths[1:], codec.strides, strict=True):
        samples *= stride
        widest = max(widest, samples * width)
    return FP32 * DECODER_COPIES * config.num_slots * (MAX_FRAMES + LOOKAHEAD) * widest


def _requests(model: ModelConfig, dtype: torch.dtype, config: EngineConfig, cuda: bool) -> int:
    """Tensors of the runner and of its lanes: codes stored, page tables, sampling values; the table of the rope."""
    C, pages = model.num_codebooks, -(-config.max_context // config.page_size)
    codes = (config.num_slots + 1) * config.max_context * C * 2
    if not cuda:  # as read by the host
        codes += config.num_slots * config.max_context * C * 2
    lane = 40 + 4 * (pages + pages % 2) + 2 * (C + 1) + 3 * 4 + 4 * model.num_kv_heads
    return codes + config.max_batch * lane + config.max_context * 2 * model.head_dim * dtype.itemsize


def _activations(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes per row of a pass, at the widest place of a layer: behind gate and up, or around the attention."""
    hidden, q, qkv = model.hidden_size, model.q_size, model.q_size + 2 * model.kv_size
    return dtype.itemsize * (3 * hidden + max(3 * model.intermediate_size, qkv + 2 * q))


def _rows(model: ModelConfig, dtype: torch.dtype, config: EngineConfig, cuda: bool) -> int:
    """A row of everybody: activations, logits, and the attention's partial sums or gathered rows."""
    B, K, D = config.max_batch, model.num_kv_heads, model.head_dim
    logits = model.num_codebooks * model.codebook_vocab * (dtype.itemsize + FP32)
    if cuda:  # split-KV: a sum for each query head and split; there are as many splits as keep the GPU busy
        splits = SPLITS_ANYWHERE * B * K if config.deterministic else 512 + B * K
        attention = FP32 * splits * (model.num_heads // K) * (D + 1)
    else:  # every lane's rows are laid side by side, as many as the longest has
        attention = B * min(config.max_context, config.kv_rows) * 2 * model.kv_size * dtype.itemsize
    return B * (_activations(model, dtype) + logits) + attention


def _prompts(model: ModelConfig, dtype: torch.dtype, config: EngineConfig, cuda: bool) -> int:
    """One pass over prompts: activations; on the CPU also the keys and values of a whole context, and their mask."""
    context, attention = min(config.max_context, config.kv_rows), 0
    if not cuda:
        attention = context * 2 * (model.kv_size + model.q_size) * dtype.itemsize + config.prefill_rows * context * FP32
    return config.prefill_rows * _activations(model, dtype) + attention


def _cuda(config: EngineConfig) -> int:
    graphs = len(row_sizes(config.max_batch)) * GRAPH + len(sizes(CAPACITY)) * CODEC_GRAPH
    return CUDA_CONTEXT + config.graphs * graphs + 4 * CUDA_SEGMENT  # large blocks, small ones, both kinds of graphs


def _block(nbytes: int, cuda: bool) -> int:
    return -(-nbytes // CUDA_BLOCK) * CUDA_BLOCK if cuda and nbytes >= MiB else nbytes
