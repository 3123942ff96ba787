"""Replicas on Ray: conversations outlive a replica, and go where their prefix was read."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

try:
    import httpx
    import ray
    from ray import serve
    from starlette.requests import Request

    from rwkv_engine.server.forwarding import Forwarded
    from rwkv_engine.server.ray_app import Args, Front, Replica, app
    from rwkv_engine.server.ray_router import PrefixRouter
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra ray has", allow_module_level=True)

pytestmark = pytest.mark.slow
ARGS = Args(drain_seconds=120, replicas=2, cpus=1, most_body_bytes=10_000, most_new_tokens=10**6)
ENDLESS = {"prompt": "The king", "max_tokens": 10**6, "seed": 1, "logit_bias": {"0": -1e4}}


@pytest.fixture(scope="module")
def client(ray_cluster, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    keys = tmp_path_factory.mktemp("keys") / "state.keys"
    keys.write_text("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=\n")
    serve.run(app(ARGS.model_copy(update={"state_keys": keys})), name="rwkv")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    serve.shutdown()


def replicas():
    names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#Replica#" in actor["name"]]
    return [ray.get_actor(actor["name"], actor["namespace"]) for actor in names]


def completed(client, prompt, seed):
    """The text of a completion, asked for again where a replica dies."""
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0.8, "seed": seed}
    for _ in range(20):
        with suppress(httpx.HTTPError):
            response = client.post("/v1/completions", json=body)
            if response.status_code == 200:
                return response.json()["choices"][0]["text"]
        time.sleep(0.5)
    raise AssertionError(f"no answer to {prompt!r}")


def test_responses_are_those_of_one_server(client, tales):
    options = {"max_new_tokens": 24, "temperature": 0.8, "seed": 3}
    expected = tales.generate("The king said", **options)
    assert completed(client, "The king said", 3) == expected
    body = {"prompt": "The king said", "max_tokens": 24, "temperature": 0.8, "seed": 3, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        events = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert len(events) > 10
    assert events[-1] == "data: [DONE]"
    refused = client.post("/v1/completions", json={"prompt": "x", "suffix": "y"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "suffix"
    assert client.post("/v1/completions", content=b"x" * 2_000_000).status_code == 413
    assert client.get("/nothing").status_code == 404


def metrics(client, name):
    """The values of a metric of both replicas, which the times at which they made a counter tell apart: their processes
    may have started in the same hundredth of a second. They must be equally busy, as the least busy one answers."""
    values = {}
    until = time.monotonic() + 20
    while len(values) < 2:
        assert time.monotonic() < until, "the replicas do not all answer"
        page = dict(re.findall(r"^(\S+) (\S+)$", client.get("/metrics").text, re.MULTILINE))
        values[page["rwkv_generated_tokens_created"]] = float(page.get(name, 0))
    return sorted(values.values())


def test_a_conversation_stays_where_it_was_read(client):
    name = 'rwkv_requests_total{route="/v1/chat/completions",status="200"}'
    for seed in range(2):
        messages = []
        for turn in range(4):
            messages.append({"role": "user", "content": f"Who are you, {seed}?"})
            body = {"messages": messages, "max_tokens": 3, "seed": turn}
            message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
            messages.append({"role": "assistant", "content": message["content"] or "I"})
    assert metrics(client, name) in ([0, 8], [4, 4])


def test_requests_that_begin_alike_are_on_all_replicas_when_there_are_many(client):
    body = {"messages": [{"role": "user", "content": "Tell me about the sea."}], "max_tokens": 300}
    name = 'rwkv_requests_total{route="/v1/chat/completions",status="200"}'
    before = metrics(client, name)
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/chat/completions", json=body), range(30)))
    assert {answer.status_code for answer in answers} == {200}
    after = metrics(client, name)
    assert sum(after) - sum(before) == 30
    assert min(after) - max(before) >= 3 or min(y - x for x, y in zip(before, after, strict=True)) >= 3


def test_a_state_goes_on_on_any_replica(client, tales):
    options = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    body = {"prompt": "The king said", "return_state": True, **options}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    expected = tales.generate(f"The king said{choice['text']} And then", max_new_tokens=12, temperature=0.8, seed=3)
    body = {"prompt": " And then", "state": choice["state"], **options}
    name = 'rwkv_requests_total{route="/v1/completions",status="200"}'
    before = metrics(client, name)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/completions", json=body), range(12)))
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {expected}
    assert sum(metrics(client, name)) == sum(before) + 12


def test_a_client_that_leaves_ends_its_text(client):
    before = sum(metrics(client, "rwkv_generated_tokens_total"))
    with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
        lines = response.iter_lines()
        assert all(next(lines) is not None for _ in range(5))
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=ENDLESS, timeout=1)
    until = time.monotonic() + 10
    while metrics(client, "rwkv_texts") != [0, 0]:
        assert time.monotonic() < until, "a text runs that nobody reads"
    assert sum(metrics(client, "rwkv_generated_tokens_total")) > before


def test_no_conversation_is_lost_when_a_replica_dies_under_load(client, tales):
    def conversation(seed):
        text = f"Once there was a king who had {seed} sons."
        for turn in range(5):
            text += completed(client, text, seed + turn)
            if (seed, turn) == (0, 1):
                ray.kill(replicas()[0], no_restart=False)
        return text

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(conversation, range(12)))
    for seed, text in enumerate(texts):
        expected = f"Once there was a king who had {seed} sons."
        for turn in range(5):
            expected += tales.generate(expected, max_new_tokens=24, temperature=0.8, seed=seed + turn)
        assert text == expected


def test_replicas_that_are_replaced_finish_what_they_have(client):
    body = {**ENDLESS, "max_tokens": 6000, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines)
        old = {actor._actor_id for actor in replicas()}
        threading.Thread(target=lambda: serve.run(app(ARGS.model_copy(update={"replicas": 1})), name="rwkv")).start()
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    until = time.monotonic() + 150
    while old & {actor._actor_id for actor in replicas()}:
        assert time.monotonic() < until, "the old replicas do not end"
        time.sleep(0.1)
    assert len(completed(client, "The king", 1)) > 0


def test_a_replica_reads_only_what_is_new():
    n_threads = torch.get_num_threads()
    try:
        replica = Replica(Args(cpus=1))
    finally:
        torch.set_num_threads(n_threads)
    for prompt in ("Once upon a time there was a king", "Once upon a time there was a king who had a son"):
        body = json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
        headers = [(b"content-type", b"application/json")]
        assert (
            asyncio.run(first(replica.respond(Forwarded("POST", "/v1/completions", b"", headers, body))))["status"]
            == 200
        )
    assert replica._service.scheduler.cache.statistics.tokens_saved > 5


@pytest.mark.parametrize("key", ["", "Bearer wrong", "Bearer one"])
def test_the_front_reads_no_body_without_a_key(key, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    forwarded, reads = [], []

    async def respond(request):
        forwarded.append(request)
        yield {"status": 200, "headers": []}

    async def receive():
        reads.append(1)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    replicas = SimpleNamespace(respond=SimpleNamespace(remote=respond))
    front = Front(SimpleNamespace(options=lambda stream: replicas), 10, tmp_path / "keys")
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "client": None}
    request = Request(scope | {"headers": [(b"authorization", key.encode())]}, receive)
    asyncio.run(front(request))
    has_key = key == "Bearer one"
    assert (forwarded[0].body, len(reads)) == ((b"{}", 1) if has_key else (b"", 0))


def test_arguments_as_the_command_gives_them():
    assert isinstance(app({"model": "tales", "replicas": "2", "cpus": "0.5"}), serve.Application)
    for wrong in ({"replica": "2"}, {"replicas": "two"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            app(wrong)


def test_a_template_that_does_not_exist_is_refused_before_anything_is_deployed():
    with pytest.raises(ValueError, match=r"template\n.*expected one of bob-alice"):
        Args(template="alice")


async def first(messages):
    kept = [message async for message in messages]
    return kept[0]


def routed(router, candidates, *prefixes):
    request = SimpleNamespace(args=[Forwarded("POST", "/", b"", [], b"", prefixes=prefixes)])
    ranks = asyncio.run(router.choose_replicas(candidates, request))
    return request, [sorted(replica.replica_id for replica in rank) for rank in ranks]


def test_the_replica_with_the_longest_prefix_is_tried_first():
    router = PrefixRouter.__new__(PrefixRouter)  # without a cluster
    router.initialize_state(most_ahead=8)
    queued = {"a": 3, "b": 9}
    router._replica_queue_len_cache = queued
    candidates = [SimpleNamespace(replica_id=name) for name in "abc"]
    request, ranks = routed(router, candidates, b"1", b"2")
    assert ranks == [["a", "b", "c"]]
    queued["c"] = 2
    router.on_request_routed(request, "b", None)
    router.on_request_routed(routed(router, candidates, b"1", b"3")[0], "c", None)
    assert routed(router, candidates, b"1", b"2", b"4")[1] == [["b"], ["a", "c"]]
    assert routed(router, candidates, b"1")[1] == [["c"], ["a", "b"]]
    assert routed(router, [candidates[0], candidates[2]], b"1", b"2")[1] == [["c"], ["a"]], "b has died"
    assert routed(router, candidates, b"5")[1] == [["a", "b", "c"]]
    queued["b"] = 10
    assert routed(router, candidates, b"1", b"2", b"4")[1] == [["a", "b", "c"]], "b has 8 requests more than c"


def test_the_server_of_one_machine_does_not_import_ray():
    code = "import sys, rwkv_engine.server.app, rwkv_engine.server.run; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
