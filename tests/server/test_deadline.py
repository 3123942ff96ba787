"""A request that takes too long ends with an error, and not as if its text were whole."""

from __future__ import annotations

import json
import time

import pytest
from served import Client, begun, is_idle, wait_until

from rwkv_engine.server import embeddings

LONG = {"prompt": "The king", "max_tokens": 4000, "logit_bias": {"0": -1000}, "n": 3}


@pytest.fixture(scope="module")
def client(tales):
    client = Client(begun(tales, request_seconds=0.2, slots=2))
    yield client
    wait_until(lambda: is_idle(client.service))


@pytest.mark.slow
def test_a_text_that_takes_too_long(client):
    response = client.post("/v1/completions", LONG)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "timeout"
    assert "not done in 0.2 seconds" in response.json()["error"]["message"]
    wait_until(lambda: is_idle(client.service))


@pytest.mark.slow
def test_a_stream_that_takes_too_long(client):
    response = client.post("/v1/completions", LONG | {"stream": True})
    assert response.status_code == 200
    *pieces, last = [json.loads(line[6:]) for line in response.text.splitlines() if line]
    assert last["error"]["code"] == "timeout"
    assert pieces
    assert all(piece["choices"][0]["finish_reason"] is None for piece in pieces)
    assert "[DONE]" not in response.text
    wait_until(lambda: is_idle(client.service))


@pytest.mark.slow
def test_vectors_that_take_too_long(client, monkeypatch):
    monkeypatch.setattr(embeddings, "embed", lambda *arguments, progress, **options: [progress(0, 1), time.sleep(1)])
    response = client.post("/v1/embeddings", {"input": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "timeout"


def test_what_is_done_in_time_is_not_touched(client, tales):
    result = client.result("/v1/completions", prompt="The", seed=1, max_tokens=3)
    assert result["choices"][0]["text"] == tales.generate("The", 3, seed=1)
