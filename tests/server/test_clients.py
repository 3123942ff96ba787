"""What the keys of a server allow: each its own number of texts and tokens, under its name in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal

import pytest
from served import Client, begun, httpx

from rwkv_engine import RequestError
from rwkv_engine.server import clients
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.logs import JsonLines
from rwkv_engine.server.run import reloading

PATH = "/v1/completions"
BODY = {"prompt": "The", "max_tokens": 2}
ANN, BOB = {"authorization": "Bearer sesame"}, {"authorization": "Bearer open"}


@pytest.fixture
def clock(monkeypatch):
    """The seconds of a clock that stands still."""
    now = [1000.0]
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    return now


def test_lines_of_keys():
    keys = Keys(["# all", "", "sesame name=ann texts=2 tokens-per-minute=60", "open"])
    ann, bob = keys.accept(b"Bearer sesame"), keys.accept(b"Bearer open")
    assert (ann.name, ann.most_texts, ann.tokens_per_minute) == ("ann", 2, 60)
    assert (bob.name, bob.most_texts, bob.tokens_per_minute) == ("key-4", None, None)
    assert keys.accept(b"Bearer name=ann") is None


@pytest.mark.parametrize(
    "line",
    ["k name=", "k name=a=b", "k texts=0", "k texts=-1", "k texts=x", "k texts=2 texts=3", "k sesame", "k tokens=3",
     "k texts=99999999999", "k name=a\tb", "sesame"],
)  # fmt: skip
def test_wrong_lines_are_refused_by_number_alone(line):
    with pytest.raises(RequestError, match="keys: line 2: ") as refused:
        Keys(["sesame", line])
    assert "sesame" not in str(refused.value)


def test_texts_at_a_time(tales):
    service = begun(tales, keys=Keys(["sesame texts=2", "open"]))
    client = Client(service)
    assert client.post(PATH, BODY | {"n": 2}, **ANN).status_code == 200
    response = client.post(PATH, BODY | {"n": 3}, **ANN)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert "this key has 0 texts and may have 2" in response.json()["error"]["message"]
    assert client.post(PATH, BODY | {"n": 3}, **BOB).status_code == 200
    ann = service.settings.keys.accept(b"Bearer sesame")
    with ann.hold([]):
        ann.texts += 1
        assert client.post(PATH, BODY | {"n": 2}, **ANN).status_code == 429
        assert client.post(PATH, BODY, **ANN).status_code == 200
        ann.texts -= 1
    assert client.post(PATH, BODY | {"n": 2, "stream": True}, **ANN).status_code == 200
    assert (ann.texts, service.places.taken) == (0, 0)


def test_tokens_in_a_minute(tales, clock):
    client = Client(begun(tales, keys=Keys(["sesame tokens-per-minute=60", "open"])))
    used = client.post(PATH, BODY, **ANN).json()["usage"]["total_tokens"]
    assert client.post(PATH, BODY | {"max_tokens": 64, "logit_bias": {"0": -100}}, **ANN).status_code == 200
    response = client.post(PATH, BODY, **ANN)
    assert response.status_code == 429
    debt = used + (used - 2 + 64) - 60
    assert int(response.headers["retry-after"]) == debt + 1, "a token in a second"
    assert client.post("/v1/embeddings", {"input": "x"}, **ANN).status_code == 429
    assert client.post(PATH, BODY, **BOB).status_code == 200
    clock[0] += debt + 1
    assert client.post(PATH, BODY, **ANN).status_code == 200
    clock[0] += 3600
    assert client.post(PATH, BODY | {"max_tokens": 60, "logit_bias": {"0": -100}}, **ANN).status_code == 200
    assert client.post(PATH, BODY, **ANN).status_code == 429, "an hour earns no more than a minute"


def test_embeddings_count_too(tales, clock):
    service = begun(tales, keys=Keys(["sesame texts=1 tokens-per-minute=60"]))
    client = Client(service)
    ann = service.settings.keys.accept(b"Bearer sesame")
    with ann.counted(1):
        assert client.post("/v1/embeddings", {"input": "x"}, **ANN).status_code == 429
    assert client.post("/v1/embeddings", {"input": "x"}, **ANN).status_code == 200
    assert ann.texts == 0

    async def together(n):
        transport = httpx.ASGITransport(client._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            posts = [http.post("/v1/embeddings", json={"input": "word " * 200}, headers=ANN) for _ in range(n)]
            return sorted(response.status_code for response in await asyncio.gather(*posts))

    ann.most_texts = None
    assert asyncio.run(together(4)) == [200, 429, 429, 429], "the first one has used what is there for all of them"


def test_embeddings_that_nobody_waits_for_are_paid(tales, clock, monkeypatch):
    service = begun(tales, keys=Keys(["sesame tokens-per-minute=60"]))
    monkeypatch.setattr("rwkv_engine.server.embeddings._compute", lambda *_: 1 / 0)  # as when a client leaves
    client = Client(service)
    assert client.post("/v1/embeddings", {"input": "word " * 200}, **ANN).status_code == 500
    assert client.post(PATH, BODY, **ANN).status_code == 429


def test_what_is_not_used_is_given_back(tales, clock):
    client = Client(begun(tales, keys=Keys(["sesame tokens-per-minute=60"])))
    for _ in range(5):
        body = BODY | {"max_tokens": 1000, "stop": ["e", "a", "o", "i", " "]}
        assert client.post(PATH, body, **ANN).status_code == 200


def test_names_are_logged_and_keys_are_not(tales, caplog):
    client = Client(begun(tales, keys=Keys(["sesame name=ann", "open"])))
    logger = logging.getLogger("rwkv_engine")
    logger.addHandler(caplog.handler)
    try:
        client.post(PATH, BODY, **ANN)
        client.post(PATH, BODY)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line.get("client") for line in lines] == ["ann", None]
    assert "sesame" not in json.dumps(lines)


def test_sighup_reads_keys_again(tales, tmp_path):
    file = tmp_path / "keys"
    file.write_text("sesame name=ann\nopen")
    keys = Keys.read(file)
    ann = keys.accept(b"Bearer sesame")
    ann.texts = 3
    with reloading(keys):
        file.write_text("other\nsesame name=anna texts=3")
        os.kill(os.getpid(), signal.SIGHUP)
        assert keys.accept(b"Bearer open") is None
        assert keys.accept(b"Bearer other")
        again = keys.accept(b"Bearer sesame")
        assert (again.name, again.most_texts, again.texts) == ("anna", 3, 3)
        file.write_text("sesame wrong")
        os.kill(os.getpid(), signal.SIGHUP)
        assert keys.accept(b"Bearer other"), "they stay as they were"
