"""Which tensor gets which type: the mixes, what stays 16-bit, what --keep overrules, and what is refused."""

import json
import math

import pytest

from octavo.quant import encode
from octavo.quant.formats.blocks import TYPES
from octavo.quant.gguf_file import PROVENANCE_BYTES
from octavo.quant.recipe import is_linear, recipe
from octavo.quant.scores import Scores
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.errors import RequestError
from octavo.tools.inventory import CODECS, MODELS, inventory
from octavo.tools.layout import config, header
from octavo.tools.make_checkpoint import make_checkpoint

TEXT = "tied.embedding.text_embedding.weight"
AUDIO = "tied.embedding.modality_embeddings.0.embedding.weight"
CODEC = "tied.embedding.modality_embeddings.0.model.fc.weight"
COPIES = frozenset(["tied.head.text_head.weight", "tied.head.modality_heads.0.weight"])


def linear(layer, name):
    return f"body.layers.{layer}.{'self_attn' if name in 'qkvo' else 'mlp'}.{name}_proj.weight"


@pytest.fixture(scope="module")
def real_size(tmp_path_factory):
    """The published layout, holes for weights."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "config.json").write_text(json.dumps(config(MODELS["4b"])))
    head = header(inventory(MODELS["4b"], CODECS["real"]), "bf16")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(head)
        file.truncate(len(head) + 2 * 4_654_850_537)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return Checkpoint.open(tiny_dir)


def plan(checkpoint, *arguments, **options):
    return recipe(checkpoint, ModelConfig.from_checkpoint(checkpoint.config), *arguments, without=COPIES, **options)


def raised(kinds, name, kind="Q6_K"):
    return [layer for layer in range(36) if kinds[linear(layer, name)] == kind]


def test_llama_cpps_mix(real_size):
    kinds = plan(real_size, "gguf", "q4_k_m").kinds
    layers = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35]  # quant.md 7.4
    assert raised(kinds, "v") == raised(kinds, "down") == layers
    assert not any(raised(kinds, name) for name in ("q", "k", "o", "gate", "up"))
    assert kinds[TEXT] == "Q8_0" and kinds[AUDIO] == kinds[CODEC] == "bf16"


def test_the_even_mix_has_equal_types_where_others_join_matrices(real_size):
    mix = plan(real_size, "gguf")
    assert mix.type == "q4_k_even" and mix.bits == 4
    for layer in range(36):
        assert {mix.kinds[linear(layer, name)] for name in "qkv"} == {"Q4_K"}
        assert {mix.kinds[linear(layer, name)] for name in ("gate", "up")} == {"Q4_K"}
    assert raised(mix.kinds, "o") == raised(mix.kinds, "down") == raised(plan(real_size, "gguf", "q4_k_m").kinds, "v")


@pytest.mark.parametrize(
    "wanted, most",
    [(("awq",), 2.75), (("nf4",), 2.75), (("gguf", "q4_k_m"), 3.1), (("gguf", "q4_k_even"), 3.1), (("int8",), 4.8),
     (("fp8",), 4.8), (("gguf", "q8_0"), 4.8)],
)  # fmt: skip
def test_sizes_of_the_real_shape(real_size, wanted, most):
    made, total = plan(real_size, *wanted), 0
    for name, kind in made.kinds.items():
        shape = real_size.info[name].shape
        if made.is_gguf:
            block = TYPES[encode.GGUF_FLOATS.get(kind, kind)]
            total += math.prod(shape) // block.weights * block.nbytes
        else:
            parts = encode.parts(kind, shape, made.group_size).values()
            total += sum(dtype.itemsize * math.prod(part) for dtype, part in parts)
    assert total < most * 1e9 - 20e6  # 20 MB: tokenizer, headers


@pytest.mark.parametrize("type, bits", [("q8_0", 8), ("Q6_K", 6), ("q5_k", 5), ("q4_0", 4), ("f16", 16), ("bf16", 16)])
def test_plain_gguf_types(tiny, type, bits):
    made = plan(tiny, "gguf", type)
    kinds = {kind for name, kind in made.kinds.items() if is_linear(name)}
    assert made.bits == bits and kinds == {{"f16": "fp16", "bf16": "bf16"}.get(type, type.upper())}
    assert made.kinds[TEXT] == ("Q8_0" if bits < 16 else kinds.pop())


def test_norms_are_exact_and_copies_left_out(tiny):
    kinds = plan(tiny, "awq").kinds
    assert kinds["body.norm.weight"] == kinds["body.layers.0.self_attn.q_norm.weight"] == "fp32"
    assert not COPIES & kinds.keys() and len(kinds) == len(tiny) - 2
    assert kinds[TEXT] == "int8" and kinds[linear(3, "down")] == "awq"


def test_layers_come_in_their_order(real_size):
    layers = [int(name.split(".")[2]) for name in plan(real_size, "int8").kinds if name.startswith("body.layers.")]
    assert layers == sorted(layers) and layers[-1] == 35


def test_keep(tiny):
    kinds = plan(
        tiny, "gguf", "q4_k", keep={"*.o_proj": "q6_k", "text": "bf16", "codec": "f32", linear(0, "v"): "Q8_0"}
    )
    assert kinds.kinds[linear(2, "o")] == "Q6_K" and kinds.kinds[linear(0, "v")] == "Q8_0"
    assert kinds.kinds[TEXT] == "bf16" and kinds.kinds[CODEC] == "fp32" and kinds.kinds[linear(1, "v")] == "Q4_K"
    assert plan(tiny, "int8", keep={"body.layers.0.*_proj": "bf16"}).bits == 8


def test_a_search_shares_scales_within_a_layer(tiny):
    whole = plan(tiny, "awq", keep={"body.layers.1.*_proj": "bf16"})
    searched = whole.searched()
    assert linear(0, "q") in searched and "body.layers.0.input_layernorm.weight" in searched
    assert not any(name.startswith("body.layers.1.") for name in searched)
    with pytest.raises(RequestError, match=r"body\.layers\.1\.\*"):
        plan(tiny, "awq", keep={linear(1, "q"): "bf16"}).searched()


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (("gptq",), {}, ["'gptq'", "awq"]),
        (("gguf", "q3_k"), {}, ["'q3_k'", "q4_k_m"]),
        (("int8", "q8_0"), {}, ["--type", "int8"]),
        (("awq",), {"group_size": 96}, ["body.layers.0.mlp.down_proj.weight", "1024", "96", "128, 64, 32, 16"]),
        (("awq",), {"group_size": 0}, ["group size", "128"]),
        (("awq",), {"group_size": -1}, ["group size"]),
        (("awq",), {"keep": {"nothing.*": "bf16"}}, ["nothing.*=bf16", "--tensors"]),
        (("awq",), {"keep": {"text": "q8_0"}}, ["'q8_0'", "int8"]),
        (("gguf",), {"keep": {"text": "int8"}}, ["'int8'", "q8_0"]),
        (("gguf",), {"keep": {"codec": "q8_0"}}, ["only the matrices"]),
        (("gguf",), {"keep": {"body.norm": "q8_0"}}, ["body.norm.weight"]),
    ],
    ids=str,
)
def test_refused(tiny, arguments, options, words):
    with pytest.raises(RequestError) as error:
        plan(tiny, *arguments, **options)
    assert all(word in str(error.value) for word in words), error.value


def test_rows_that_blocks_do_not_divide(tmp_path):
    odd = Checkpoint.open(make_checkpoint(tmp_path / "odd", hidden=160))
    with pytest.raises(RequestError, match="160 values.*Q4_K's blocks of 256"):
        plan(odd, "gguf", "q4_k")
    assert plan(odd, "gguf", "q4_0").bits == 4
    with pytest.raises(RequestError, match="--group-size of 32, 16"):
        plan(odd, "awq", group_size=128)


def test_what_a_file_says_of_itself_fits_into_its_place(real_size):
    """The real shape's errors and scores, in GGUF's 64 KiB."""
    eight, kinds = (0.123456,) * 8, plan(real_size, "gguf").kinds
    scores = Scores(24, 9999, eight, eight, eight, eight, 0.123456, 0.123456, 0.123456, ((0.123456, 0.123456),) * 10,
                    (0.123456,) * 36, 0.123456)  # fmt: skip
    errors = {name: 0.06543 for name, kind in kinds.items() if kind != real_size.info[name].kind}
    assert len(errors) > 253
    assert len(json.dumps({"relative_l2": errors, "scores": scores.to_dict()})) < PROVENANCE_BYTES // 2
