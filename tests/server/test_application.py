"""What all requests have in common: keys, sizes, places, states of the server, logs, metrics, and odd bodies."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import ROUTES, Client, begun

from rwkv_engine import RequestError
from rwkv_engine.server.keys import Keys
from rwkv_engine.server.logs import JsonLines
from rwkv_engine.server.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from rwkv_engine.server.service import Service, Settings

BODY = {"prompt": "The", "max_tokens": 1}
FIELDS = sorted(
    {
        name
        for schema in (CompletionRequest, ChatRequest, EmbeddingRequest)
        for name in (*schema.model_fields, *schema.unsupported)
    }
    | {"tokens", "something"}
)


def is_error(response):
    error = response.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and error["message"]


def test_models_health_and_openapi(client):
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "tales"
    assert client.get("/v1/models/tales").json() == model
    assert client.get("/v1/models/owner/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(ROUTES) < set(paths)
    assert "422" not in paths["/v1/completions"]["post"]["responses"]
    assert client.get("/docs").status_code == 404
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/tales"):
        assert client.call("HEAD", path).status_code == 200


def test_addresses_and_methods_that_do_not_exist(client):
    for response, status in (
        (client.get("/nothing"), 404),
        (client.get("/v1/../../etc/passwd"), 404),
        (client.get("/v1/completions"), 405),
        (client.post("/v1/models", {}), 405),
    ):
        assert response.status_code == status
        assert is_error(response)


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "1", "null", '"x"', b"\xff", "[" * 100_000, '{"n":' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_bodies_that_are_not_objects(client, path, body):
    response = client.post(path, body)
    assert response.status_code == 400
    assert is_error(response)


def test_a_body_that_is_not_json_is_told_where(client):
    response = client.post("/v1/completions", '{"prompt": The}')
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the body is not JSON: Expecting value at character 11"


def test_a_body_needs_its_content_type(client):
    response = client.call("POST", "/v1/completions", content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_host_names(tales):
    hosts = frozenset(["localhost", "127.0.0.1", "::1", "chat.example.com"])
    client = Client(begun(tales, hosts=hosts))
    for name in ("localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "[::1]", "Chat.Example.Com"):
        assert client.get("/v1/models", host=name).status_code == 200
    for name in (
        "example.com",
        "localhost.example.com:8000",
        "127.0.0.1.example.com",
        "a@b",
        "[::1",
        "",
        "localhost@x",
    ):
        for path in ("/", "/v1/models", "/health"):
            response = client.get(path, host=name)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "host_not_allowed"
    assert Client(begun(tales)).get("/v1/models", host="example.com").status_code == 200


def test_keys(tales):
    client = Client(begun(tales, keys=Keys(["one", "two", "dreiü"])))
    for path in (*ROUTES, "/v1/models", "/metrics", "/openapi.json", "/nothing"):
        for headers in (
            {},
            {"authorization": "Bearer three"},
            {"authorization": "one"},
            {"authorization": "Basic one"},
        ):
            response = client.post(path, BODY, **headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
    for key in ("one", "two"):
        assert client.post("/v1/completions", BODY, authorization=f"Bearer {key}").status_code == 200
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200


def test_files_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# mine\nabc\n\n  def  \n", encoding="utf-8")
    keys = Keys.read(file)
    assert keys.accept(b"Bearer abc")
    assert keys.accept(b"bearer def")
    for wrong in (b"", b"Bearer", b"Bearer ", b"Bearer ab", b"Bearer abcd", b"Bearer # mine", b"abc"):
        assert not keys.accept(wrong)
    file.write_text("# nothing\n")
    with pytest.raises(RequestError, match=rf"{file}: there is no API key, .* one on each line"):
        Keys.read(file)
    with pytest.raises(RequestError, match="No such file"):
        Keys.read(tmp_path / "none")
    file.write_bytes(b"\xff")
    with pytest.raises(RequestError, match="not UTF-8"):
        Keys.read(file)


def test_a_body_that_is_too_large(tales):
    client = Client(begun(tales, most_body_bytes=1000))
    for length in ({}, {"content-length": "10"}, {"content-length": "9" * 5000}, {"content-length": "x"}):
        response = client.post("/v1/completions", {"prompt": "x" * 1000}, **length)
        assert response.status_code == 413
        assert is_error(response)
    assert client.post("/v1/completions", BODY).status_code == 200


def test_a_busy_server_refuses(client, service):
    with service.places.hold(service.places.most - 1):
        for path, body in (
            ("/v1/completions", BODY | {"n": 2}),
            ("/v1/completions", BODY | {"n": 2, "stream": True}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}),
        ):
            response = client.post(path, body)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.post("/v1/completions", BODY).status_code == 200
    assert client.post("/v1/completions", BODY | {"n": 2}).status_code == 200


def test_a_server_that_is_not_ready(tales):
    service = Service(Settings(name="tales"))
    client = Client(service)
    for code in ("loading", "draining"):
        for path in (*ROUTES, "/v1/models"):
            response = client.post(path, BODY)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == code
            assert "retry-after" in response.headers
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 200
        service.begin(tales)
        service.is_draining = True


def test_unknown_fields(client, tales, caplog):
    logger = logging.getLogger("rwkv_engine")
    logger.addHandler(caplog.handler)
    try:
        for _ in range(2):
            assert client.post("/v1/completions", BODY | {"frobnicate": 1}).status_code == 200
    finally:
        logger.removeHandler(caplog.handler)
    assert sum("frobnicate" in record.getMessage() for record in caplog.records) == 1
    strict = Client(begun(tales, strict=True))
    response = strict.post("/v1/completions", BODY | {"frobnicate": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "frobnicate"
    assert is_error(strict.post("/v1/completions", BODY | {"half \ud800": 1}))
    assert strict.post("/v1/completions", BODY | {"user": "me", "suffix": None}).status_code == 200
    assert strict.post("/v1/completions", BODY | {"store": True, "metadata": {"a": "b"}}).status_code == 200


def test_logs_and_metrics_without_content(tales, caplog):
    client = Client(begun(tales))
    logger = logging.getLogger("rwkv_engine")
    logger.addHandler(caplog.handler)
    try:
        response = client.post("/v1/completions", BODY | {"prompt": "secret"}, **{"x-request-id": "abc-1"})
        assert response.headers["x-request-id"] == "abc-1"
        assert response.json()["id"] == "cmpl-abc-1"
        odd = client.post("/v1/completions/secret", {}, **{"x-request-id": "bad id"})
        assert len(odd.headers["x-request-id"]) == 32
        client.post("/v1/completions", {"prompt": {"secret": 1}})
    finally:
        logger.removeHandler(caplog.handler)
    lines = [JsonLines().format(record) for record in caplog.records]
    assert "secret" not in "".join(lines)
    requests = [json.loads(line) for line in lines]
    assert [line["status"] for line in requests] == [200, 404, 400]
    assert [line["route"] for line in requests] == ["/v1/completions", "other", "/v1/completions"]
    assert (
        requests[0].items() >= {"id": "abc-1", "prompt_tokens": 3, "completion_tokens": 1, "ends": ["length"]}.items()
    )
    page = client.get("/metrics").text
    assert 'rwkv_requests_total{route="/v1/completions",status="200"} 1.0' in page
    assert "rwkv_generated_tokens_total 1.0" in page
    assert "rwkv_texts 0.0" in page
    assert "secret" not in page


def test_other_origins(client, tales):
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    response = client.call("OPTIONS", "/v1/completions", headers=preflight)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers
    open_to = Client(begun(tales, origins=("https://a.example",), keys=Keys(["one"])))
    response = open_to.call("OPTIONS", "/v1/completions", headers=preflight)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    other = open_to.call("OPTIONS", "/v1/completions", headers=preflight | {"origin": "https://b.example"})
    assert other.status_code == 400


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://a.example/page", "ftp://a.example", ""])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(RequestError, match=r"origin: got .*, expected one such as https://example\.com"):
        Service(Settings(name="tales", origins=(origin,)))


def test_a_model_that_fails(client, service, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(service.scheduler._steps, "_decode", fail)
    response = client.post("/v1/completions", BODY | {"max_tokens": 5})
    assert response.status_code == 500
    assert is_error(response)
    assert "memory" not in response.text
    response = client.post("/v1/completions", BODY | {"max_tokens": 5, "stream": True})
    assert '"type":"server_error"' in response.text
    assert "[DONE]" not in response.text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "text", "The"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["role", "content", "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)
good = st.fixed_dictionaries(
    {}, optional={"prompt": st.just("The"), "messages": st.just([{"role": "user", "content": "x"}])}
)


@pytest.fixture(scope="module")
def fuzzed(tales):
    return Client(begun(tales, most_new_tokens=2, slots=4, most_waiting=4))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(FIELDS) | st.text(), values, max_size=3), good)
def test_any_body_gets_a_clear_answer(fuzzed, path, body, sound):
    response = fuzzed.post(path, sound | body)
    if response.status_code != 200:
        assert response.status_code in (400, 404), (body, response.text)
        assert is_error(response)
    assert not fuzzed.service.places.taken
