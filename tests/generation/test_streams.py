"""Tokens and text as they come; the state is that of exactly the text, whatever ended it."""

from __future__ import annotations

import itertools
import random

import oracle
import pytest
import torch
from checkpoint_files import save_pth
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Shape
from states import FIELDS

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import Sampler, SamplingParams, TokenStream
from rwkv_engine.generation.scheduler import scheduler_of
from rwkv_engine.text import StreamDecoder


@pytest.fixture(params=[False, True], ids=["values", "pool"])
def model(request, tmp_path):
    """Decoding as on the CPU, and as on a GPU that records its steps."""
    model = RWKV.from_pretrained(save_pth(oracle.random_weights(Shape()), tmp_path / "m.pth"))
    model.engine.pooled = request.param
    return model


def write(model, n, prompt=(1, 2), state=None, sample=0, **options):
    return list(TokenStream(model.engine, prompt, Sampler(SamplingParams(**options)), n, state, sample))


@pytest.mark.slow
def test_the_same_seed_writes_the_same_and_another_does_not(model):
    assert write(model, 30, seed=1) == write(model, 30, seed=1)
    assert write(model, 30, seed=1) != write(model, 30, seed=2)
    assert write(model, 30) != write(model, 30)
    assert write(model, 30, seed=1) != write(model, 30, seed=1, sample=1)


def test_a_text_written_in_two_calls_is_the_text_written_in_one(model):
    whole = write(model, 20, seed=4)
    half = write(model, 8, seed=4)
    _, state = model.forward([1, 2, *half[:-1]])
    assert half + write(model, 12, half[-1:], state, seed=4) == whole


def test_stop_tokens_end_the_text_and_are_not_part_of_it(model):
    whole = write(model, 20, seed=4)
    assert write(model, 20, seed=4, stop_tokens=(whole[7],)) == whole[: whole.index(whole[7])]


def test_the_state_at_a_stop_token_is_that_before_it(tales):
    whole = tales.stream("Once", 20, seed=3)
    list(whole)
    stream = tales.stream("Once", 20, seed=3, stop_tokens=[whole.tokens[6]])
    text = "".join(stream)
    assert (stream.finish_reason, text) == ("stop", tales.tokenizer.decode(stream.tokens))
    same_state(stream.state, tales.forward([*tales.encode_prompt("Once"), *stream.tokens])[1])


def test_no_tokens_when_none_are_asked_for(model):
    assert write(model, 0) == []
    with pytest.raises(RequestError, match="max_new_tokens"):
        write(model, -1)
    with pytest.raises(RequestError, match="no tokens"):
        write(model, 1, prompt=[])
    with pytest.raises(RequestError, match="sample"):
        write(model, 1, sample=-1)


def test_penalties_end_a_loop(model):
    """Greedy writing falls into a loop; a frequency penalty leads out of it, one that decays at once does not."""
    loop = write(model, 60, temperature=0)
    assert len(set(loop)) < 10
    assert len(set(write(model, 60, temperature=0, frequency_penalty=0.5))) > len(set(loop))
    assert write(model, 60, temperature=0, frequency_penalty=1e-9, penalty_decay=0.0) == loop


DATA = st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n", "é".encode(), b"\xc3", b"\xa9", b"\xff", b"", b"ba\n"]))


@given(chunks=DATA, stop=st.lists(st.sampled_from(["a", "ab", "aab", "\n\n", "é", "bé", "ba\nb"]), max_size=3))
def test_the_decoder_equals_cutting_at_the_first_stop(chunks, stop):
    data = b"".join(chunks)
    # As it is read: a stop ends the text with the chunk in which it is complete, at the earliest one there.
    read, cut = b"", None
    for chunk in chunks:
        read += chunk
        starts = [read.find(text.encode()) for text in stop if text.encode() in read]
        if starts:
            cut = min(starts)
            break
    decoder, pieces = StreamDecoder(stop), []
    for chunk in chunks:
        if not decoder.stopped:
            pieces.append(decoder.push(chunk))
    pieces.append(decoder.finish())
    assert "".join(pieces) == data[:cut].decode(errors="replace")
    assert decoder.stopped == (cut is not None)
    assert decoder.released == (len(data) if cut is None else cut)


def same_state(got, expected):
    assert got.position.tolist() == expected.position.tolist()
    for name in FIELDS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory):
    """Reads bytes, so that a text has one encoding only."""
    weights = oracle.random_weights(Shape(n_vocab=256))
    weights["head.weight"] = weights["head.weight"] * 0.3
    return RWKV.from_pretrained(save_pth(weights, tmp_path_factory.mktemp("bytes") / "m.pth"))


LETTERS = [i for i in range(256) if chr(i) not in "abc\n"]


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), stop=st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3))
def test_the_state_equals_a_fresh_read_of_the_returned_text(bytes_model, seed, stop):
    stream = bytes_model.stream("ab\n", 25, seed=seed, stop=stop, banned_tokens=LETTERS)
    text = "".join(stream)
    assert text == stream.text
    assert not any(one in text for one in stop)
    whole = bytes_model.generate("ab\n", 25, seed=seed, banned_tokens=LETTERS)
    assert whole.startswith(text)
    assert stream.finish_reason == ("length" if text == whole else "stop")
    same_state(stream.state, bytes_model.forward(list(b"ab\n" + text.encode()))[1])
    assert bytes(stream.tokens).decode() == text


@pytest.mark.slow
def test_random_stops_in_random_text_of_a_model_with_long_tokens(tales):
    """A stop often begins inside of a token; what is kept of that token is read again."""
    prompt, rng, cut_inside = "Once upon a time", random.Random(0), 0
    whole = tales.stream(prompt, 40, temperature=1.0, seed=7)
    text, ids = "".join(whole), tales.encode_prompt(prompt)
    for _ in range(20):
        start = rng.randrange(len(text) - 8)
        stop = text[start : start + rng.randrange(1, 8)]
        stream = tales.stream(prompt, 40, temperature=1.0, seed=7, stop=[stop], logprobs=0)
        assert "".join(stream) == text[: text.index(stop)]
        assert stream.finish_reason == "stop"
        assert tales.tokenizer.decode(stream.tokens) == stream.text
        same_state(stream.state, tales.forward([*ids, *stream.tokens])[1])
        ends = itertools.accumulate(len(tales.tokenizer.decode([token])) for token in whole.tokens)
        n_whole = sum(end <= len(stream.text) for end in ends)
        assert stream.tokens[:n_whole] == whole.tokens[:n_whole], "tokens that are kept whole stay as they were drawn"
        assert len(stream.logprobs) == n_whole
        cut_inside += len(stream.tokens) > n_whole
    assert cut_inside > 3


@pytest.mark.slow
@pytest.mark.parametrize("n_pieces", [0, 1, 2, 7])
def test_the_state_of_an_abandoned_stream_is_that_of_the_yielded_text(tales, n_pieces):
    stream = tales.stream("The king", 30, seed=3, stop=["\n\n\n"])
    shown = "".join(itertools.islice(stream, n_pieces))
    assert (stream.text, stream.finish_reason) == (shown, None)
    same_state(stream.state, tales.forward([*tales.encode_prompt("The king"), *stream.tokens])[1])
    assert tales.tokenizer.decode(stream.tokens) == shown
    rest = "".join(stream)  # asking for the state has not disturbed it
    assert shown + rest == tales.generate("The king", 30, seed=3)


def test_half_a_character_held_back_is_not_in_the_state(bytes_model):
    """The model is made to write the first byte of é for ever: nothing is ever shown before the end."""
    stream = bytes_model.stream("x", 3, logit_bias={0xC3: 1e6})
    assert next(stream) == "\ufffd"  # the second byte shows that the first is no character
    assert stream.tokens == [0xC3]
    same_state(stream.state, bytes_model.forward([ord("x"), 0xC3])[1])
    assert "".join(stream) == "\ufffd\ufffd"
    assert stream.tokens == [0xC3] * 3


def test_the_next_call_goes_on_from_the_state(tales):
    first = tales.stream("Once upon a time", 20, seed=1, stop=["."])
    text = "".join(first)
    again = tales.stream(" The fox", 20, state=first.state, seed=2)
    ids = [*tales.encode_prompt("Once upon a time"), *first.tokens, *tales.encode_prompt(" The fox")]
    _, state = tales.forward(ids[:-1])
    expected = TokenStream(tales.engine, ids[-1:], Sampler(SamplingParams(seed=2)), 20, state)
    assert text
    assert "".join(again) == tales.tokenizer.decode(list(expected))


def test_logprobs_come_with_the_tokens_of_the_text(tales):
    stream = tales.stream("Once upon a time", 12, temperature=0, logprobs=3)
    list(stream)
    assert [entry.token for entry in stream.logprobs] == stream.tokens
    ids = tales.encode_prompt("Once upon a time")
    logits, _ = tales.forward([*ids, *stream.tokens], full_output=True)
    expected = torch.log_softmax(logits.double(), -1)
    for entry, row in zip(stream.logprobs, expected[len(ids) - 1 :], strict=False):
        assert entry.logprob == pytest.approx(row[entry.token].item(), abs=1e-4)
        assert entry.top[0] == (entry.token, entry.logprob)  # greedy
        assert len(entry.top) == 3


def test_seeds_are_reported(tales):
    stream = tales.stream("Once", 5)
    text = "".join(stream)
    assert tales.generate("Once", 5, seed=stream.seed) == text


def test_a_stream_that_has_failed_does_not_end_as_if_it_were_whole(tales, monkeypatch):
    steps = scheduler_of(tales.engine)._steps
    stream = tales.stream("The king", 20)
    next(stream)
    with monkeypatch.context() as broken:
        broken.setattr(steps, "_decode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(stream)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert stream.finish_reason is None
