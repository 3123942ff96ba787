from __future__ import annotations

import json
import random

import huggingface_hub
import oracle
import pytest
from checkpoints import save_pth
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Shape
from tokenizers import Tokenizer as Library
from tokenizers import models

from rwkv_engine import RWKV, RequestError, TokenizerError
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.text import BpeTokenizer, ByteTokenizer, StreamDecoder, find_tokenizer

TALES = BpeTokenizer(EMBEDDED["tales"] / "tokenizer.json")
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_any_text_survives(text):
    for tokenizer in (TALES, ByteTokenizer()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_streaming_never_shows_half_a_character(text):
    for tokenizer in (TALES, ByteTokenizer()):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(token) for token in tokenizer.encode(text)]
        assert decoder.finish() == ""
        assert "".join(pieces) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 255), max_size=40))
def test_streaming_any_bytes_equals_decoding_them_at_once(tokens):
    tokenizer = ByteTokenizer()
    decoder = StreamDecoder(tokenizer)
    assert "".join([*map(decoder.push, tokens), decoder.finish()]) == tokenizer.decode(tokens)


def test_an_unfinished_character_at_the_end_is_shown_not_dropped():
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.push(byte) for byte in "é".encode()[:1]] == [""]
    assert decoder.finish() == "\ufffd"


def check_against_the_library(path):
    ours, theirs = BpeTokenizer(path), Library.from_file(str(path))
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(ours.n_vocab) for _ in range(rng.randrange(1, 12))]
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    return ours


def test_token_bytes_are_the_librarys():
    tokenizer = check_against_the_library(EMBEDDED["tales"] / "tokenizer.json")
    assert tokenizer.end_of_text == 0
    assert tokenizer.token_bytes(0) == b""


def test_the_20b_tokenizer(data):
    tokenizer = check_against_the_library(data / "20B_tokenizer.json")
    assert tokenizer.n_vocab == 50277
    assert tokenizer.encode("\n\n") == [535]
    text = "The fox, 狐狸, naïve 🦊   \n\n  end"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_found_beside_the_file(tmp_path):
    (tmp_path / "20B_tokenizer.json").write_text((EMBEDDED["tales"] / "tokenizer.json").read_text())
    assert find_tokenizer(tmp_path / "model.pth", 50277).n_vocab == 2048
    assert find_tokenizer(tmp_path, 50277).n_vocab == 2048


def test_found_in_the_hub_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--EleutherAI--gpt-neox-20b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer.json").write_text((EMBEDDED["tales"] / "tokenizer.json").read_text())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_tokenizer(tmp_path / "model.pth", 50277).name.endswith("tokenizer.json")
    assert find_tokenizer(tmp_path / "model.pth", 50276) is None


def test_bytes_for_a_vocabulary_of_256(tmp_path):
    model = RWKV.from_pretrained(save_pth(oracle.random_weights(Shape(n_vocab=256)), tmp_path / "m.pth"))
    assert isinstance(model.tokenizer, ByteTokenizer)
    assert isinstance(model.generate("héllo", max_new_tokens=5, seed=1), str)


def test_forward_works_without_a_tokenizer_and_text_calls_say_how_to_give_one(tmp_path):
    path = save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")
    model = RWKV.from_pretrained(path)
    model.forward([1, 2])
    for call in (lambda: model.generate("a"), lambda: model.stream("a"), lambda: model.tokenizer):
        with pytest.raises(TokenizerError, match="--tokenizer"):
            call()


@pytest.mark.parametrize("content", [(EMBEDDED["tales"] / "tokenizer.json").read_text(), "{"], ids=["other", "damaged"])
def test_a_useless_tokenizer_beside_the_model_only_stops_text(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    model = RWKV.from_pretrained(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))
    model.forward([1, 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*--tokenizer"):
        model.generate("a")


def test_a_tokenizer_files_own_limits_do_not_cut_a_prompt(tmp_path):
    content = json.loads((EMBEDDED["tales"] / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert len(BpeTokenizer(tmp_path / "t.json").encode("Once upon a time there was a king")) > 4


@pytest.mark.parametrize("prompt", ["\udcff", 5, None, b"bytes"])
def test_a_prompt_that_is_no_text_is_refused(prompt, tales):
    with pytest.raises(RequestError, match="prompt: expected text"):
        tales.generate(prompt)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    path = save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth")
    with pytest.raises(TokenizerError, match="has 2048 tokens, the model's vocabulary is 33"):
        RWKV.from_pretrained(path, tokenizer=EMBEDDED["tales"] / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"decoder": {"type": "ByteLevel"}}', None])
def test_what_is_no_tokenizer_is_refused(content, tmp_path):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerError, match=r"t\.json"):
        BpeTokenizer(path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path):
    path = tmp_path / "t.json"
    Library(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(TokenizerError, match="byte-level"):
        BpeTokenizer(path)
