from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine.native import cpu_kernels
from rwkv_engine.text.byte_trie import byte_trie, byte_trie_reference

BYTES = {byte + 1: bytes([byte]) for byte in range(256)}
FEW_BYTES = st.lists(st.sampled_from(b"ab \x00\xff"), max_size=30).map(bytes)
needs_kernels = pytest.mark.skipif(
    cpu_kernels.python_module("byte_trie") is None, reason=f"nothing compiled here: {cpu_kernels.status().reason}"
)


def longest_match(tokens: dict[int, bytes], data: bytes) -> list[int]:
    """What both must do, in the fewest words."""
    ids = {token: i for i, token in tokens.items()}
    result = []
    while data:
        length = next(n for n in range(len(data), 0, -1) if data[:n] in ids)
        result.append(ids[data[:length]])
        data = data[length:]
    return result


@pytest.mark.slow
@pytest.mark.parametrize("make", [pytest.param(byte_trie, marks=needs_kernels), byte_trie_reference])
@given(words=st.sets(FEW_BYTES.filter(lambda word: len(word) > 1), max_size=30), data=FEW_BYTES)
@settings(deadline=None)
def test_the_longest_token_is_taken_at_each_place(make, words, data):
    tokens = BYTES | dict(enumerate(sorted(words), start=1000))
    assert make(tokens)(data) == longest_match(tokens, data)
    everything = b"".join(words) + data
    assert make(tokens)(everything) == longest_match(tokens, everything)


@needs_kernels
def test_the_compiled_one_is_used():
    assert byte_trie(BYTES).__qualname__ != byte_trie_reference(BYTES).__qualname__


@needs_kernels
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({}, "no token is the single byte 0"),
        ({i: t for i, t in BYTES.items() if t != b"q"} | {999: b"qq"}, "no token is the single byte 113"),
        (BYTES | {999: b"a"}, "is given twice"),
        (BYTES | {999: b""}, "token 999 is empty"),
    ],
)
def test_a_vocabulary_that_would_get_stuck_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        byte_trie(tokens)


@needs_kernels
def test_a_token_of_any_length_and_a_text_of_any_length():
    encode = byte_trie(BYTES | {999: b"x" * 100_000})
    assert encode(b"x" * 100_001) == [999, ord("x") + 1]
    assert encode(b"ab" * 1_000_000) == [ord("a") + 1, ord("b") + 1] * 1_000_000


@pytest.mark.slow
@needs_kernels
def test_other_threads_run_meanwhile():
    """The main thread counts while another encodes: it could not if the interpreter were held."""
    trie = cpu_kernels.python_module("byte_trie").ByteTrie(BYTES)
    thread = threading.Thread(target=trie.encode, args=(bytes(50_000_000),))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
        thread.join(0.001)
    assert turns > 20
