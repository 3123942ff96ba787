"""The server's state cache: prompts that begin as earlier ones are read from there on, but never as another owner's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Client, begun

from rwkv_engine.chat import Chat
from rwkv_engine.server.keys import Keys
from rwkv_engine.text.templates import TEMPLATES

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TALE = "Once upon a time there was a king who had a daughter, and she was as fair as the day, but as proud as a cat."
OTHER = "In the deep sea there lived a fish who knew all that was said in the ships above, and told it to nobody."


def cached(client, prompt=TALE, key="", path=COMPLETIONS, **body):
    """The number of tokens of a prompt that were not read."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = client.post(path, {"prompt": prompt, "max_tokens": 1, "seed": 1, **body}, **headers)
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_conversation_reads_what_is_new(tales):
    client = Client(begun(tales))
    body = {"seed": 3, "max_tokens": 12, "temperature": 0.5}
    template = TEMPLATES["bob-alice"]
    said = [{"role": "user", "content": "Tell me of the sea."}]
    first = client.result(CHAT, messages=said, **body)
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    n_prompt = first["usage"]["prompt_tokens"]
    for n_cached in (0, n_prompt - 1):  # that a prompt is repeated is noticed at the second time
        retry = client.result(CHAT, messages=said, **body)
        assert retry["choices"] == first["choices"]
        assert retry["usage"]["prompt_tokens_details"] == {"cached_tokens": n_cached}
    said += [first["choices"][0]["message"], {"role": "user", "content": "Why?"}]
    following = client.result(CHAT, messages=said, **body)
    assert following["usage"]["prompt_tokens_details"]["cached_tokens"] >= n_prompt
    unaided = client.result(CHAT, messages=said, no_cache=True, **body)
    assert unaided["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert following["choices"] == unaided["choices"]
    assert (
        "".join(Chat(tales, template, 12, seed=3, temperature=0.5).reply("Tell me of the sea."))
        == (first["choices"][0]["message"]["content"])
    )
    [*_, last] = client.events(CHAT, messages=said, stream_options={"include_usage": True}, **body)
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] >= n_prompt


def test_owners_do_not_share(tales):
    client = Client(begun(tales, keys=Keys(["one", "two"])))
    n_known = [0, 0, len(tales.encode_prompt(TALE)) - 1]
    assert [cached(client, key="one") for _ in range(3)] == n_known
    assert [cached(client, key="two") for _ in range(3)] == n_known, "the other client has asked the same"
    assert cached(client, TALE + "\nOne day", key="one") >= n_known[-1]


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([TALE, OTHER]), st.integers(60, 100), st.booleans()),
        min_size=3,
        max_size=8,
    )
)
def test_what_is_cached_does_not_depend_on_other_owners(tales, requests):
    def numbers(of):
        client = Client(begun(tales, keys=Keys(["a", "b"])))
        return [cached(client, text[:n], key=key, no_cache=no) for key, text, n, no in requests if key in of]

    together = numbers("ab")
    for key in "ab":
        assert [n for n, (own, *_) in zip(together, requests, strict=True) if own == key] == numbers(key)


def test_a_request_may_leave_no_trace(tales):
    client = Client(begun(tales))
    assert cached(client, no_cache=True) == 0
    assert client.service.cache.statistics == begun(tales).cache.statistics
    assert [cached(client), cached(client)] == [0, 0]
    before = client.service.cache.statistics
    assert cached(client, no_cache=True) == 0
    assert client.service.cache.statistics == before
    assert cached(client) > 10


def test_without_a_cache(tales):
    client = Client(begun(tales, cache_bytes=0))
    assert [cached(client) for _ in range(3)] == [0] * 3
    assert "rwkv_cache" not in client.get("/metrics").text


def test_states_outlive_the_server(tales, tmp_path):
    folder = tmp_path / "states"
    keys = Keys(["one", "two"])
    first = Client(begun(tales, keys=keys, cache_folder=folder))
    assert [cached(first, key="one") for _ in range(2)] == [0, 0]
    later = Client(begun(tales, keys=keys, cache_folder=folder, cache_bytes=0))
    assert cached(later, key="two") == 0
    assert cached(later, key="one") > 10
    assert not any(b"one" in path.read_bytes()[:4096] for path in folder.iterdir())


def test_metrics(tales):
    client = Client(begun(tales))
    n = [cached(client) for _ in range(3)][-1]
    found = dict(re.findall(r"^(rwkv_cache_\w+) (\S+)$", client.get("/metrics").text, re.MULTILINE))
    statistics = client.service.cache.statistics
    assert float(found["rwkv_cache_hits_total"]) == 1
    assert float(found["rwkv_cache_misses_total"]) == 2
    assert float(found["rwkv_cache_tokens_saved_total"]) == n > 10
    assert float(found["rwkv_cache_bytes"]) == statistics.n_bytes > 0
    assert float(found["rwkv_cache_entries"]) == statistics.entries > 0


def test_an_owner_is_not_the_key():
    owners = {Keys.owner(header) for header in (b"Bearer one", b"bearer  one ", b"Bearer two")}
    assert len(owners) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", owner) for owner in owners)
