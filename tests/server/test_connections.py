"""Clients that are slow to send a request, or to read what was sent: they hold nothing for long, and stall nobody."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time

import pytest
from served import httpx, in_thread, is_idle, wait_until

LONG = {"prompt": "The king", "max_tokens": 4000, "logit_bias": {"0": -1000}, "stream": True, "logprobs": 20, "n": 4}


@pytest.fixture(scope="module")
def running(tales):
    """A server that waits for its clients for half a second."""
    server, thread = in_thread(tales, slots=4, most_waiting=4, client_seconds=0.5)
    yield server
    server.handle_exit(signal.SIGTERM, None)
    thread.join(20)
    assert not thread.is_alive()


def connect(server, window=None):
    client = socket.socket()
    if window:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.settimeout(20)
    client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return client


def head(length):
    about = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join(["POST /v1/completions HTTP/1.1", *about, "", ""])


def received(client):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(2**16):
            data += part
    return data


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_left(running, tales):
    body = json.dumps(LONG)
    began = time.monotonic()
    with connect(running, window=2048) as client:
        client.sendall((head(len(body)) + body).encode())
        wait_until(lambda: running.service.in_flight)
        answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "The", "seed": 1}, timeout=20)
        assert answer.json()["choices"][0]["text"] == tales.generate("The", 16, seed=1)
        wait_until(lambda: not running.service.in_flight)
        assert b"[DONE]" not in received(client)
    assert time.monotonic() - began < 20
    wait_until(lambda: is_idle(running.service))


@pytest.mark.slow
def test_a_client_that_reads_slowly_gets_everything(running):
    body = json.dumps(LONG | {"max_tokens": 60, "n": 1})
    with connect(running, window=2048) as client:
        client.sendall((head(len(body)) + body).encode())
        data = b""
        while b"[DONE]" not in data:
            data += client.recv(4096)
            time.sleep(0.005)


@pytest.mark.slow
def test_a_body_that_does_not_come_holds_nothing(running):
    with connect(running) as client:
        client.sendall(head(1000).encode())
        for _ in range(3):
            client.sendall(b" ")
            time.sleep(0.05)
            assert not running.service.places.taken
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer
    wait_until(lambda: not running.service.in_flight)


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["", "POST /v1/completions HTTP/1.1\r\nHos"])
def test_a_head_that_does_not_come_ends_the_connection(running, begin):
    began = time.monotonic()
    with connect(running) as client:
        client.sendall(begin.encode())
        assert received(client) == b""
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_connections_are_used_again(running):
    body = json.dumps({"prompt": "The", "max_tokens": 1})
    with connect(running) as client:
        for _ in range(3):  # together for longer than the limit
            client.sendall((head(len(body)) + body).encode())
            answer = b""
            while not answer.endswith(b"}}"):
                answer += client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.3)
