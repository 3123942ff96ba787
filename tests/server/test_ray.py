"""Replicas on Ray: conversations outlive a replica, and go where their prefix was read."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

try:
    import httpx
    import ray
    from ray import serve

    from rwkv_engine.server.forwarding import Forwarded
    from rwkv_engine.server.ray_app import Args, app
    from rwkv_engine.server.ray_router import PrefixRouter
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra ray has", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(ray_cluster):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(Args(replicas=2, cpus=1, most_body_bytes=10_000)), name="rwkv")
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
    assert client.post("/v1/completions", content=b"x" * 20_000).status_code == 413
    assert client.get("/nothing").status_code == 404


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


def routed(router, candidates, *prefixes):
    request = SimpleNamespace(args=[Forwarded("POST", "/", b"", [], b"", prefixes=prefixes)])
    ranks = asyncio.run(router.choose_replicas(candidates, request))
    return request, [[replica.replica_id for replica in rank] for rank in ranks]


def test_the_replica_with_the_longest_prefix_is_tried_first():
    router = PrefixRouter.__new__(PrefixRouter)  # without a cluster
    router.initialize_state()
    candidates = [SimpleNamespace(replica_id=name) for name in "abc"]
    request, ranks = routed(router, candidates, b"1", b"2")
    assert ranks == [["a", "b", "c"]]
    router.on_request_routed(request, "b", None)
    router.on_request_routed(routed(router, candidates, b"1", b"3")[0], "c", None)
    assert routed(router, candidates, b"1", b"2", b"4")[1] == [["b"], ["a", "c"]]
    assert routed(router, candidates, b"1")[1] == [["c"], ["a", "b"]]
    assert routed(router, [candidates[0], candidates[2]], b"1", b"2")[1] == [["c"], ["a"]], "b has died"
    assert routed(router, candidates, b"5")[1] == [["a", "b", "c"]]


def test_the_server_of_one_machine_does_not_import_ray():
    code = "import sys, rwkv_engine.server.app, rwkv_engine.server.run; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
