"""Many prompts at a time: each gets the text that `generate` alone gives it."""

from __future__ import annotations

import itertools
import threading

import pytest

from rwkv_engine import RequestError

PROMPTS = ["Once upon a time", "The king", "", "Hänsel", {"prompt": "The fox", "temperature": 0.0}]
OPTIONS = {"temperature": 0.9, "top_p": 0.9, "seed": 3, "stop": ["\n", "the "]}


def alone(tales, prompt, n=12, **options):
    own = {"prompt": prompt} if isinstance(prompt, str) else prompt
    stream = tales.stream(**{"max_new_tokens": n, **options, **own})
    "".join(stream)
    return stream


def test_a_list_of_prompts_gives_their_texts_in_order(tales):
    seen = []
    texts = tales.generate(PROMPTS * 8, 12, progress=lambda done, total: seen.append((done, total)), **OPTIONS)
    assert texts == [alone(tales, prompt, **OPTIONS).text for prompt in PROMPTS] * 8
    assert seen == [(done, 40) for done in range(1, 41)]
    assert tales.generate([]) == []


def test_results_have_what_a_stream_has(tales):
    options = OPTIONS | {"logprobs": 1}
    results = sorted(tales.generate_many(PROMPTS, 12, **options), key=lambda result: result.index)
    for index, (result, prompt) in enumerate(zip(results, PROMPTS, strict=True)):
        expected = alone(tales, prompt, **options)
        assert (result.index, result.text, result.finish_reason) == (index, expected.text, expected.finish_reason)
        assert result.generated.tokens == expected.tokens
        assert result.generated.logprobs == expected.logprobs


def test_pieces_of_all_texts_come_as_they_are_generated(tales):
    texts, order = [""] * 3, []
    for index, piece in tales.stream_many(PROMPTS[:3], 12, **OPTIONS):
        assert piece
        texts[index] += piece
        order.append(index)
    assert texts == tales.generate(PROMPTS[:3], 12, **OPTIONS)
    assert order != sorted(order), "no text waits for another one"


def test_all_texts_may_continue_one_state(tales):
    _, state = tales.forward(tales.encode_prompt("The old witch"))
    texts = tales.generate([" said", " went"], 8, state, seed=1)
    assert texts == [tales.generate(prompt, 8, state, seed=1) for prompt in (" said", " went")]


def test_prompts_are_read_as_there_is_room(tales):
    read = []
    endless = (read.append(i) or "The king" for i in itertools.count())
    results = tales.generate_many(endless, 5, temperature=0)
    for _ in range(40):
        assert next(results).text == tales.generate("The king", 5, temperature=0)
    assert len(read) < 40 + 40
    results.close()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"prompt": "x"}, "prompts: got .*, expected several"),
        (["x", 5], r"prompts\[1\]: .*expected a text, or a dictionary with a prompt"),
        (["x", {"temperature": 1}], r"prompts\[1\]: .*expected a text, or a dictionary with a prompt"),
        ([{"prompt": "x", "temprature": 1}], r"prompts\[0\]: temprature: there is no such argument; did you mean temp"),
        ([{"prompt": "x", "top_p": 2}], r"prompts\[0\]: top_p: got 2"),
        (["x", {"prompt": b"x"}], r"prompts\[1\]: prompt: expected text"),
        ([{"prompt": "x", "banned_tokens": [99_999]}], "banned_tokens: got token 99999"),
    ],
)
def test_a_wrong_prompt_is_named(prompts, message, tales):
    with pytest.raises(RequestError, match=message):
        list(tales.generate_many(prompts, 3))


def test_threads_that_stream_at_the_same_time(tales):
    texts = {}

    def write(prompt):
        texts[prompt] = tales.generate(prompt, 30, seed=5)

    threads = [threading.Thread(target=write, args=[prompt]) for prompt in ("Once", "The king", "The fox", "A")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {prompt: tales.generate(prompt, 30, seed=5) for prompt in texts}
    assert len(texts) == 4
