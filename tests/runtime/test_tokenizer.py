import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from octavo.runtime.errors import CheckpointError, RequestError
from octavo.runtime.tags import ADDED_TOKENS, CONTROL_TAGS, STRUCTURAL_TOKENS
from octavo.runtime.text import neutralise
from octavo.runtime.tokenizer import BASE_VOCABULARY, Tokenizer, build_byte_tokenizer


@pytest.fixture(scope="module")
def published(published_tokenizer):
    return Tokenizer.load(published_tokenizer)


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer(build_byte_tokenizer())


@pytest.fixture
def file(tmp_path):
    """A small tokenizer.json that tests may damage."""
    build_byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


# --- the published tokenizer


def test_ids_of_the_published_file(published):
    frame = published.tts, published.text, published.audio, published.ref_text, published.ref_audio
    assert frame == (151667, 151672, 151670, 151680, 151679)
    assert published.vocab_size == 151_727
    added = published._tokenizer.get_added_tokens_decoder()
    assert {index: token.content for index, token in added.items()} == dict(enumerate(ADDED_TOKENS, BASE_VOCABULARY))


def test_every_control_tag_is_one_id(published):
    ids = [published.encode(tag) for tag in CONTROL_TAGS]
    assert ids == [[BASE_VOCABULARY + ADDED_TOKENS.index(tag)] for tag in CONTROL_TAGS]


def test_tags_swallow_no_white_space(published):
    there, space, tag, and_ = published.encode("there <|prosody:pause|> and")
    assert [space, tag] == [220, 151722]
    assert [there] == published.encode("there") and [and_] == published.encode(" and")
    assert published.encode("there<|prosody:pause|>and") == [there, tag, *published.encode("and")]


def test_a_combining_accent_gives_the_ids_of_the_composed_letter(published):
    assert published.encode("Cafe\u0301 Zu\u0308rich") == published.encode("Caf\u00e9 Z\u00fcrich")
    assert published.encode("\u1112\u1161\u11ab") == published.encode("\ud55c")  # hangul in jamo


def test_digits_go_one_by_one(published):
    assert published.encode("2048") == [published.encode(digit)[0] for digit in "2048"]


# --- both: the stand-in has the published pipeline


@pytest.mark.parametrize("base_vocab", [None, 300, BASE_VOCABULARY])
def test_the_stand_in_has_the_84_tokens_in_order(base_vocab):
    tokenizer = build_byte_tokenizer(base_vocab)
    first = base_vocab or 256
    assert [tokenizer.token_to_id(token) for token in ADDED_TOKENS] == list(range(first, first + 84))
    assert Tokenizer(tokenizer).vocab_size == first + 84


def test_the_stand_in_splits_and_normalises_as_the_published_one(published):
    ours, theirs = json.loads(build_byte_tokenizer().to_str()), json.loads(published._tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        assert ours[part] == theirs[part]
    flags = [{**token, "id": token["id"] - 256 + BASE_VOCABULARY} for token in ours["added_tokens"]]
    assert flags == theirs["added_tokens"]
    published_bytes = {token: index for token, index in theirs["model"]["vocab"].items() if index < 256}
    assert ours["model"]["vocab"] == published_bytes


def test_the_stand_in_gives_one_id_per_byte(tiny):
    text = "Hé 你 12\n"
    assert len(tiny.encode(text)) == len(text.encode())
    assert tiny._tokenizer.decode(tiny.encode(text)) == text
    assert tiny.encode("e\u0301") == tiny.encode("\u00e9")
    filled = Tokenizer(build_byte_tokenizer(BASE_VOCABULARY))
    assert filled.encode("unused300") == tiny.encode("unused300")


@pytest.mark.parametrize("token", sorted(STRUCTURAL_TOKENS))
def test_no_structural_id_comes_out(tiny, token):
    with pytest.raises(RequestError, match="cannot be spoken") as error:
        tiny.encode(f"Say {token} this.")
    assert token in str(error.value)


@given(
    st.lists(st.sampled_from(ADDED_TOKENS) | st.sampled_from("<|>ta \u0338\u0301") | st.text(max_size=2), max_size=20)
)
def test_neutralised_text_always_encodes(tiny, parts):
    text, _ = neutralise("".join(parts))
    spoken = {tiny._tokenizer.token_to_id(tag) for tag in CONTROL_TAGS}
    assert all(index < 256 or index in spoken for index in tiny.encode(text))


def test_broken_unicode_is_a_sentence(tiny):
    with pytest.raises(RequestError, match="not valid Unicode"):
        tiny.encode("a\udce9")


def test_threads_share_one_tokenizer(tiny):
    texts = [f"Text {n} <|prosody:pause|>" * (n + 1) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tiny.encode, texts * 5)) == [tiny.encode(text) for text in texts] * 5


# --- loading


def test_load_takes_the_file_or_its_folder(file, tiny):
    assert Tokenizer.load(file).encode("Hi") == Tokenizer.load(str(file.parent)).encode("Hi") == tiny.encode("Hi")


def test_settings_of_another_use_are_ignored(file):
    backend = Backend.from_file(str(file))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(file))
    assert len(Tokenizer.load(file).encode("More than four")) == 14


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="tokenizer.json cannot be read: No such file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe\x00", b'{"version": "1.0", "model": {"type": "BPE"}}'],
)
def test_a_damaged_file_is_named(file, content):
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged.*Download it again"):
        Tokenizer.load(file)


def test_a_truncated_file_is_damaged(file):
    content = file.read_bytes()
    for length in range(0, len(content), 997):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            Tokenizer.load(file)


@pytest.mark.parametrize("lost", ["<|tts|>", "<|ref_audio|>", "<|sfx:sigh|>"])
def test_a_lost_token_is_named(file, lost):
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        if token["content"] == lost:
            token["content"] = "<|lost|>"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="not the tokenizer of a Higgs") as error:
        Tokenizer.load(file)
    assert f"lacks {lost}." in str(error.value)


def test_another_models_tokenizer_is_refused(file):
    content = json.loads(file.read_text())
    content["added_tokens"] = content["added_tokens"][:22]  # Qwen3's own
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="and 43 more"):
        Tokenizer.load(file)
