from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from rwkv_engine import RequestError, TokenizerError
from rwkv_engine.pipeline import EMBEDDED
from rwkv_engine.text import BpeTokenizer, ByteTokenizer, StreamDecoder

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
        decoder = StreamDecoder()
        pieces = [decoder.push(tokenizer.token_bytes(token)) for token in tokenizer.encode(text)]
        assert decoder.finish() == ""
        assert "".join(pieces) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 255), max_size=40))
def test_streaming_any_bytes_equals_decoding_them_at_once(tokens):
    tokenizer = ByteTokenizer()
    decoder = StreamDecoder()
    pieces = [decoder.push(tokenizer.token_bytes(token)) for token in tokens]
    assert "".join([*pieces, decoder.finish()]) == tokenizer.decode(tokens)


@pytest.mark.parametrize("tokenizer", [TALES, ByteTokenizer()], ids=lambda tokenizer: f"{tokenizer.n_vocab} tokens")
def test_ids_outside_the_vocabulary_are_refused_by_number(tokenizer):
    size = tokenizer.n_vocab
    for token in (-1, size, 10**9):
        for decode in (lambda token: tokenizer.decode([token]), tokenizer.token_bytes):
            with pytest.raises(RequestError, match=rf"token id {token}, expected ids from 0 to .*vocabulary of {size}"):
                decode(token)
    for tokens in (5, "a", ["a"], [0.5], None, [[1]]):
        with pytest.raises(RequestError, match="tokens: got"):
            tokenizer.decode(tokens)


def test_ids_are_decoded_from_lists_tensors_and_arrays():
    tokens = TALES.encode("Once upon a time")
    for ids in (tokens, tuple(tokens), torch.tensor(tokens), np.array(tokens), iter(tokens)):
        assert TALES.decode(ids) == "Once upon a time"


@pytest.mark.parametrize("tokenizer", [TALES, ByteTokenizer()], ids=lambda tokenizer: f"{tokenizer.n_vocab} tokens")
def test_only_text_is_encoded_and_only_bytes_are_encoded_as_bytes(tokenizer):
    for text in (5, None, b"bytes"):
        with pytest.raises(RequestError, match="text: expected text, got"):
            tokenizer.encode(text)
    with pytest.raises(RequestError, match="lone surrogate '\\\\udcff' at character 1; "):
        tokenizer.encode("a\udcff" + "b" * 5000)
    with pytest.raises(RequestError, match="data: got 'text', expected bytes"):
        tokenizer.encode_bytes("text")


@given(data=st.one_of(st.binary(max_size=60), ANY_TEXT.map(str.encode)))
@settings(deadline=None)
def test_any_bytes_survive(data):
    for tokenizer in (TALES, ByteTokenizer()):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_bytes(data))) == data


@given(text=ANY_TEXT)
@settings(deadline=None)
def test_the_bytes_of_a_text_are_encoded_as_the_text(text):
    for tokenizer in (TALES, ByteTokenizer()):
        assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)


def test_only_invalid_utf8_is_encoded_byte_by_byte():
    text = TALES.encode("Once upon a time é")
    tokens = TALES.encode_bytes("Once upon a time é".encode() + b"\xff\xe7" + "Once upon a time é".encode())
    assert tokens[: len(text)] == tokens[-len(text) :] == text
    assert [TALES.token_bytes(token) for token in tokens[len(text) : -len(text)]] == [b"\xff", b"\xe7"]


def test_bytes_without_a_token_are_refused(tmp_path):
    library = Library(models.BPE({"a": 0, "b": 1}, []))
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "t.json"))
    tokenizer = BpeTokenizer(tmp_path / "t.json")
    assert tokenizer.encode_bytes(b"ab") == [0, 1]
    with pytest.raises(TokenizerError, match=r"t\.json: got b'\\xff', which is not UTF-8"):
        tokenizer.encode_bytes(b"a\xffb")


def test_an_unfinished_character_at_the_end_is_shown_not_dropped():
    decoder = StreamDecoder()
    assert decoder.push("é".encode()[:1]) == ""
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


def test_a_tokenizer_files_own_limits_do_not_cut_a_prompt(tmp_path):
    content = json.loads((EMBEDDED["tales"] / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert len(BpeTokenizer(tmp_path / "t.json").encode("Once upon a time there was a king")) > 4


@pytest.mark.parametrize("prompt", ["\udcff", 5, None, b"bytes"])
def test_a_prompt_that_is_not_text_is_refused(prompt, tales):
    with pytest.raises(RequestError, match="prompt: expected text"):
        tales.generate(prompt)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"decoder": {"type": "ByteLevel"}}', None])
def test_invalid_tokenizers_are_refused(content, tmp_path):
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
