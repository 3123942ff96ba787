"""Where a text ended: from there the same text goes on, and other text follows exactly what was seen."""

from __future__ import annotations

import oracle
import oracle7
import pytest
import torch
from checkpoint_files import save_pth
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Shape

from rwkv_engine import RWKV
from rwkv_engine.generation.continuing import state_after, state_within
from rwkv_engine.generation.many import advancing, encode_prompt, sampler_of
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.generation.text_request import APART, MANY, TextRequest
from rwkv_engine.text.tokenizer import ByteTokenizer

STRATEGIES = ("cpu fp32", "cpu fp32i8")


@pytest.fixture(scope="module", params=STRATEGIES)
def model(request, talker):
    return RWKV.from_pretrained(talker.source, request.param, tokenizer=talker.tokenizer.name)


OF_BYTES = {
    "rwkv4": oracle.random_weights(Shape(n_layer=2, n_embd=16, n_att=24, n_ffn=40, n_vocab=256)),
    "rwkv7": oracle7.random_weights(oracle7.Shape(2, 2, 16, 40, 256)),
}


@pytest.fixture(scope="module", params=OF_BYTES.values(), ids=OF_BYTES)
def of_bytes(request, tmp_path_factory):
    """A model whose tokens are bytes, at random, so that most of them end inside of a character."""
    weights = request.param
    loaded = RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("bytes") / "m.pth"))
    return RWKV(loaded.engine, loaded.strategy, ByteTokenizer(), loaded.source)


def run(model, request):
    [done] = advancing(scheduler_of(model.engine), [request])
    return done


def begin(model, prompt, n, wants_state=True, **options):
    ids = encode_prompt(model.tokenizer, prompt)
    request = TextRequest(0, model.tokenizer, ids, sampler_of(model.tokenizer, options), n)
    request.wants_state = wants_state
    return run(model, request)


def go_on(model, snapshot, n, wants_state=True, **options):
    state, ids = state_within(model.engine, snapshot)
    sampler = sampler_of(model.tokenizer, options)
    request = TextRequest(0, model.tokenizer, ids, sampler, n, state, begun=snapshot)
    request.wants_state = wants_state
    return run(model, request)


def in_parts(model, prompt, sizes, **options):
    """The text of a request that is cut after each of some numbers of tokens; and how it ended."""
    *earlier, last = sizes
    text, snapshot = "", None
    for n in earlier:
        part = go_on(model, snapshot, n, **options) if snapshot else begin(model, prompt, n, **options)
        text += part.text
        if part.finish_reason == "stop":
            return text, "stop"
        snapshot = part.snapshot
    part = go_on(model, snapshot, last, wants_state=False, **options)
    return text + part.text, part.finish_reason


parts = st.lists(st.integers(1, 6), min_size=2, max_size=5)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(parts, st.integers(0, 99), st.lists(st.sampled_from(["\n\n", " the", "he ki", "e", "ing", ". "]), max_size=3))
def test_a_text_may_be_cut_anywhere(model, sizes, seed, stop):
    options = {"seed": seed, "temperature": 0.9, "stop": stop}
    whole = begin(model, "The king", sum(sizes), wants_state=False, **options)
    assert in_parts(model, "The king", sizes, **options) == (whole.text, whole.finish_reason)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(parts, st.integers(0, 99), st.lists(st.sampled_from(["é", "ab", "\x00a"]), max_size=2))
def test_a_text_may_be_cut_inside_of_a_character(of_bytes, sizes, seed, stop):
    # The bytes of é and the beginning of a longer character, and nearly nothing else.
    likely = dict.fromkeys("é".encode() + "€".encode(), 20.0) | {97: 18.0}
    options = {"seed": seed, "stop": stop, "logit_bias": likely}
    whole = begin(of_bytes, "a", sum(sizes), wants_state=False, **options)
    assert in_parts(of_bytes, "a", sizes, **options) == (whole.text, whole.finish_reason)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from([[], ["\n"], [" the"], ["e "], ["ing", "a"]]))
def test_other_text_follows_what_was_seen(model, n, seed, stop):
    options = {"seed": seed, "temperature": 0.9, "stop": stop}
    stream = model.stream("The king", n, **options)
    text = "".join(stream)
    request = begin(model, "The king", n, **options)
    state = state_after(model.engine, model.tokenizer, request.snapshot)
    if request.text != text:  # what was held back was shown by the stream, whose text has ended
        assert text.startswith(request.text)
        return
    for name, field in stream.state.fields.items():
        assert torch.equal(state.fields[name], field), name
    assert state.position.tolist() == stream.state.position.tolist()


def test_a_text_that_is_held_back_for_long(of_bytes):
    """Few states are kept meanwhile, and tokens after the kept one are processed again."""
    options = {"stop": ["a" * 200 + "b"], "logit_bias": {97: 100.0}, "temperature": 0}
    for n in (APART - 1, APART, 150, 190, 230):
        request = begin(of_bytes, "b", n, **options)
        assert len(request._kept) <= MANY + 200 // APART
        assert request.text == "a" * max(0, n - 200)
        state = state_after(of_bytes.engine, of_bytes.tokenizer, request.snapshot)
        assert state.position.tolist() == [1 + len(request.text)]
        following = go_on(of_bytes, request.snapshot, 40, **options)
        assert len(request.text + following.text) == max(0, n - 200 + 40)


def test_a_prompt_alone_has_a_state(model):
    request = begin(model, "The old king", 0)
    _, state = model.forward(model.encode_prompt("The old king"))
    assert (request.text, request.finish_reason, request.tokens) == ("", "length", [])
    assert all(torch.equal(request.snapshot.state.fields[name], field) for name, field in state.fields.items())
    assert len(model.encode_prompt("a")) == 1  # a single token is decoded
    assert begin(model, "a", 0).snapshot.state.position.tolist() == [1]
