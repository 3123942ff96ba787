"""Masks of allowed tokens: what is masked is as if it were banned, and texts match their grammar."""

from __future__ import annotations

import json
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_engine import RequestError
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.many import request_of
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling_rows import sample_rows
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.generation.token_mask import packed, words_of
from rwkv_engine.ops.draw_tokens import unpacked

OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 3, "min_p": 0.05},
    {"presence_penalty": 2.0, "frequency_penalty": 0.5},
    {"logit_bias": {3: 2.0}, "banned_tokens": (0, 1)},
    {"compat": "rwkv", "top_p": 0.8, "temperature": 1.3},
]


def row(options, seed, tokens=(), **more):
    found = Request([1], Sampler(SamplingParams(**options | more, seed=seed)), 10)
    found.tokens += tokens
    return found


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bits_are_those_of_int32_words(bits):
    words = packed(torch.tensor(bits))
    assert words.dtype == torch.int32
    assert len(words) == (len(bits) + 31) // 32
    values = [word & 0xFFFFFFFF for word in words.tolist()]
    assert [bool(values[i // 32] >> (i % 32) & 1) for i in range(len(bits))] == bits
    for mask in (words, words.unsqueeze(0), words.numpy()):
        assert unpacked(torch.from_numpy(words_of(mask, len(bits)))[None], len(bits)).tolist() == [bits]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_not_allowed_is_as_if_it_were_banned(data):
    """In company: some rows have a mask, others none."""
    n_vocab, n_rows = data.draw(st.integers(5, 70)), data.draw(st.integers(1, 5))
    logits = torch.randn(n_rows, n_vocab, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) * 3
    masked, banned = [], []
    for seed in range(n_rows):
        options = data.draw(st.sampled_from(OPTIONS))
        allowed = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n_vocab, max_size=n_vocab)))
        allowed[data.draw(st.integers(2, n_vocab - 1))] = True
        bans = {*options.get("banned_tokens", ()), *(~allowed).nonzero().flatten().tolist()}
        has_mask = data.draw(st.booleans())
        masked.append(row(options, seed, **({"allowed_tokens": lambda _, a=allowed: packed(a)} if has_mask else {})))
        banned.append(row(options, seed, **({"banned_tokens": tuple(bans)} if has_mask else {})))
    for _ in range(3):  # the penalties count
        got, expected = sample_rows(logits, masked), sample_rows(logits, banned)
        assert got == expected
        assert all(request.error is None for request in masked)


def test_the_function_gets_the_tokens_so_far(tales):
    seen = []

    def allowed(tokens):
        seen.append(list(tokens))
        return packed(torch.ones(tales.config.n_vocab, dtype=torch.bool))

    stream = tales.stream("The king", 6, seed=1, allowed_tokens=allowed, logprobs=1)
    assert "".join(stream) == tales.generate("The king", 6, seed=1)
    assert seen == [stream.tokens[:n] for n in range(6)]


def test_log_probabilities_are_those_before_the_mask(tales):
    only = torch.zeros(tales.config.n_vocab, dtype=torch.bool)
    only[300] = True
    stream = tales.stream("The king", 2, logprobs=1, allowed_tokens=lambda _: packed(only))
    list(stream)
    assert stream.tokens == [300, 300]
    expected = torch.log_softmax(tales.forward(tales.encode_prompt("The king"))[0].double(), -1)
    assert stream.logprobs[0].logprob == pytest.approx(expected[300].item(), abs=1e-9)
    assert stream.logprobs[0].top[0][0] == expected.argmax()


def in_company(tales, **options):
    """An ordinary text, one with these options, another ordinary text; what each of them is, or its error."""
    prompts = [("The king", {}), ("The fox", options), ("The old witch", {})]
    requests = [request_of(tales.tokenizer, 0, text, 8, None, 0, {"seed": 1, **own}) for text, own in prompts]
    scheduler = scheduler_of(tales.engine)
    for request in requests:
        scheduler.add(request)
    scheduler.wait(lambda: all(request.finish_reason for request in requests))
    texts = [request.error or request.text for request in requests]
    assert texts[0] == tales.generate("The king", 8, seed=1)
    assert texts[2] == tales.generate("The old witch", 8, seed=1)
    return texts[1]


def nothing(n_vocab):
    return lambda tokens: packed(torch.full((n_vocab,), len(tokens) < 3))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"compat": "rwkv", "top_p": 0.5}])
def test_a_mask_that_allows_nothing_is_an_error_of_its_text_alone(options, tales):
    error = in_company(tales, allowed_tokens=nothing(tales.config.n_vocab), **options)
    assert isinstance(error, RequestError)
    assert str(error).startswith("allowed_tokens: no token may follow the 3 that were generated; where a text may end")


def test_a_mask_of_banned_tokens_alone_is_an_error(tales):
    only = torch.zeros(tales.config.n_vocab, dtype=torch.bool)
    only[300] = True
    error = in_company(tales, allowed_tokens=lambda _: packed(only), banned_tokens=(300,))
    assert str(error).startswith("allowed_tokens: no token may follow the 0 that were generated")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(3, dtype=torch.int32), r"returned int32 of shape \(3,\), expected int32 in 64 words, one bit for"),
        (torch.zeros(64, dtype=torch.int64), r"returned int64 of shape \(64,\), expected int32 in 64 words"),
        (np.ones(64, dtype=np.uint32), r"returned uint32 of shape"),
        ([1, 2], r"the function returned \[1, 2\], expected int32"),
        (None, "the function returned None, expected"),
    ],
)
def test_what_is_no_mask_is_an_error_of_its_text_alone(mask, message, tales):
    error = in_company(tales, allowed_tokens=lambda _: mask)
    assert isinstance(error, RequestError)
    assert re.search(message, str(error))


def test_an_error_inside_of_the_function_is_raised_as_it_is(tales):
    def broken(tokens):
        raise ZeroDivisionError("in the grammar")

    assert isinstance(in_company(tales, allowed_tokens=broken), ZeroDivisionError)


def test_no_function_is_refused(tales):
    with pytest.raises(
        RequestError, match="allowed_tokens: got 'digits', expected a function of token ids, a format, or None"
    ):
        tales.stream("x", allowed_tokens="digits")
    with pytest.raises(RequestError, match="allowed_tokens: got \\[1\\], expected a function"):
        SamplingParams(allowed_tokens=[1])


# A number with its sign, as states of an automaton: which bytes lead from each to which.
DIGITS = b"0123456789"
NUMBER = {
    "start": {**dict.fromkeys(DIGITS, "whole"), ord("-"): "sign"},
    "sign": dict.fromkeys(DIGITS, "whole"),
    "whole": {**dict.fromkeys(DIGITS, "whole"), ord("."): "point"},
    "point": dict.fromkeys(DIGITS, "fraction"),
    "fraction": dict.fromkeys(DIGITS, "fraction"),
}
ENDS = {"whole", "fraction"}


def automaton_mask(tokenizer, automaton, start, ends, end_token):
    """A function for `allowed_tokens`: tokens that the automaton can read, and the end where it may end."""
    texts = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]

    def read(state, text):
        for byte in text:
            state = automaton.get(state, {}).get(byte)
        return state

    @lru_cache
    def mask(state):
        allowed = torch.tensor([bool(text) and read(state, text) is not None for text in texts])
        allowed[end_token] = state in ends
        return packed(allowed)

    return lambda tokens: mask(read(start, b"".join(texts[token] for token in tokens)))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"temperature": 3.0}, {"top_p": 0.5}])
def test_texts_match_their_grammar(options, tales):
    end = tales.tokenizer.end_of_text
    mask = automaton_mask(tales.tokenizer, NUMBER, "start", ENDS, end)
    prompts = [{"prompt": "He had ", "sample": i, "allowed_tokens": mask} for i in range(12)]
    others = [{"prompt": "The king", "sample": i} for i in range(4)]
    results = sorted(tales.generate_many(prompts + others, 12, seed=5, **options), key=lambda result: result.index)
    for result in results[:12]:
        # One that ends by its length may be a beginning.
        pattern = r"-?\d+(\.\d+)?" if result.finish_reason == "stop" else r"-?(\d+(\.\d*)?)?"
        assert re.fullmatch(pattern, result.text), result.text
        assert result.text
    for i, result in enumerate(results[12:]):
        assert result.text == "".join(tales.stream("The king", 12, seed=5, sample=i, **options))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_texts_match_any_automaton(tales, data):
    """Random automata over the letters of the tales, of which every state has a way on or may end."""
    states, letters = range(data.draw(st.integers(1, 5))), b"abcdefghijklmnopqrstuvwxyz ,."
    automaton = {
        state: data.draw(st.dictionaries(st.sampled_from(letters), st.sampled_from(states), max_size=8))
        for state in states
    }
    ends = {state for state in states if not automaton[state]} | data.draw(st.sets(st.sampled_from(states)))
    end = tales.tokenizer.end_of_text
    mask = automaton_mask(tales.tokenizer, automaton, 0, ends, end)
    stream = tales.stream("Once", 15, seed=data.draw(st.integers(0, 99)), temperature=2.0, allowed_tokens=mask)
    state = 0
    for byte in "".join(stream).encode():
        assert byte in automaton[state]
        state = automaton[state][byte]
    if stream.finish_reason == "stop":
        assert state in ends
    else:
        assert len(stream.tokens) == 15


def test_functions_cannot_come_from_json(tales, tmp_path):
    with pytest.raises(RequestError, match=r"prompts\[0\]: allowed_tokens: got 'digits', expected a function"):
        tales.generate([json.loads('{"prompt": "x", "allowed_tokens": "digits"}')], 2)
