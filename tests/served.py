"""An application that is called without a network. Where a package is missing, modules that import this are skipped."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

try:
    import httpx
    import openai

    from rwkv_engine.server.app import create_app
    from rwkv_engine.server.run import Server, listen
    from rwkv_engine.server.service import Service, Settings
except ImportError as error:
    pytest.skip(f"{error.name} is not installed, which the extra test has", allow_module_level=True)

__all__ = [
    "ROUTES",
    "Client",
    "Service",
    "Settings",
    "begun",
    "create_app",
    "httpx",
    "in_thread",
    "is_idle",
    "openai",
    "wait_until",
]

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize")


class Client:
    """Calls an application without a network."""

    def __init__(self, service):
        self.service = service
        self._app = create_app(service)

    def call(self, method, path, **options):
        async def run():
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def post(self, path, body, **headers):
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.call("POST", path, content=content, headers={"content-type": "application/json"} | headers)

    def get(self, path, **headers):
        return self.call("GET", path, headers=headers)

    def result(self, path, **body):
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path, **body):
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert done == "[DONE]"
        return [json.loads(chunk) for chunk in chunks]


def begun(model, **settings):
    service = Service(Settings(name="tales", **settings))
    service.begin(model)
    return service


def in_thread(model, drain_seconds=20, **settings):
    """A server that runs, as `service` and `url`, and its thread."""
    server = Server(begun(model, **settings), drain_seconds)
    server.service = server._service
    waiting = listen("127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{waiting.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [waiting]})
    thread.start()
    wait_until(lambda: server.started)
    return server, thread


def wait_until(is_met):
    until = time.monotonic() + 20
    while not is_met():
        assert time.monotonic() < until, "nothing happened for 20 seconds"
        time.sleep(0.01)


def is_idle(service):
    """Whether all slots are free, and nobody waits for one."""
    steps = service.scheduler._steps
    pool = steps._running._decoder.pool
    return not service.places.taken and not steps.waiting and sorted(pool._free) == list(range(pool.dummy))
