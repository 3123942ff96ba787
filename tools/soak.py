"""A server under load from clients of every kind: what it answers, what it keeps, and whether its texts are right.

    python -m tools.soak [--requests 2000] [--connections 200] [--seconds 600]

A process serves the package's own model. Some clients ask for texts, which are compared with those that `generate`
writes for the same prompts and seeds; others leave in the middle, send nonsense or too much, or do not read. The last
line is JSON. Exits with 1 if a text or a status is wrong, a place is not given back, or memory grows by more than 5 %
after the first tenth of the time, or the first twenty seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from rwkv_engine import RWKV

SLOTS, WAITING, CLIENT_SECONDS, CACHE_BYTES = 8, 400, 3.0, 2**22
PROMPTS = ("The king", "A fox and a wolf", "Once upon a time there was", "In the forest,")
# How often of each kind, and the statuses that are right for it; 0 is a connection that the client has closed.
KINDS = {
    "text": (5, {200}),
    "stream": (4, {200}),
    "chat": (2, {200}),
    "embedding": (1, {200}),
    "leaves": (2, {0}),
    "leaves_stream": (2, {0}),
    "nonsense": (2, {400, 404, 405}),
    "oversized": (1, {413}),
    "slow_body": (0.3, {408}),
    "reads_nothing": (0.3, {0}),
}
NONSENSE = (
    "",
    "{",
    "[]",
    "[" * 50_000,
    '{"prompt": 1}',
    '{"prompt": "x", "n": -1}',
    '{"model": "none", "prompt": "x"}',
)


class Soak:
    """One run.

    Attributes:
        statuses: how many responses of each kind had each status.
        faults: what went wrong, in words.
    """

    def __init__(self, url: str, seconds: float, n_requests: int, seed: int):
        self.url, self.statuses, self.faults = url, Counter[str](), list[str]()
        self._until, self._left = time.monotonic() + seconds, n_requests
        self._pause = seconds / n_requests
        self._random = random.Random(seed)
        model = RWKV.from_pretrained("tales")
        self._seeds = range(6)
        asked = [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in self._seeds]
        self._texts = dict(zip([(a["prompt"], a["seed"]) for a in asked], model.generate(asked, 24), strict=True))
        self._vector = model.embed("The fox", normalize=True).tolist()

    async def run(self, n_connections: int) -> None:
        """Sends requests over that many connections at a time, until there were enough or the time is over."""
        limits = httpx.Limits(max_connections=n_connections)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._work(client, n_connections) for _ in range(n_connections)))

    async def _work(self, client: httpx.AsyncClient, n_workers: int) -> None:
        weights = [weight for weight, _ in KINDS.values()]
        await asyncio.sleep(self._random.uniform(0, self._pause * n_workers))
        while self._left > 0 and time.monotonic() < self._until:
            self._left -= 1
            [kind] = self._random.choices(list(KINDS), weights)
            began = time.monotonic()
            try:
                status = await getattr(self, f"_{kind}")(client)
            except Exception as error:
                status = -1
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")
            self.statuses[f"{kind} {status}"] += 1
            if status not in KINDS[kind][1]:
                self.faults.append(f"{kind}: got status {status}, expected one of {sorted(KINDS[kind][1])}")
            await asyncio.sleep(max(0, self._pause * n_workers - (time.monotonic() - began)))

    def _asked(self, **more: object) -> dict:
        key = {"prompt": self._random.choice(PROMPTS), "seed": self._random.choice(self._seeds)}
        return {**key, "max_tokens": 24, **more}

    def _compare(self, body: dict, text: str) -> None:
        if text != self._texts[body["prompt"], body["seed"]]:
            self.faults.append(f"{body}: got {text!r}, expected {self._texts[body['prompt'], body['seed']]!r}")

    async def _text(self, client: httpx.AsyncClient) -> int:
        body = self._asked()
        response = await client.post("/v1/completions", json=body)
        if response.status_code == 200:
            self._compare(body, response.json()["choices"][0]["text"])
        return response.status_code

    async def _stream(self, client: httpx.AsyncClient) -> int:
        body = self._asked(stream=True)
        async with client.stream("POST", "/v1/completions", json=body) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        if response.status_code == 200:
            if lines.pop() != "data: [DONE]":
                self.faults.append(f"{body}: the stream is not whole")
            self._compare(body, "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines))
        return response.status_code

    async def _chat(self, client: httpx.AsyncClient) -> int:
        body = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": 16, "n": 2}
        return (await client.post("/v1/chat/completions", json=body)).status_code

    async def _embedding(self, client: httpx.AsyncClient) -> int:
        response = await client.post("/v1/embeddings", json={"input": "The fox"})
        if response.status_code == 200:
            found = response.json()["data"][0]["embedding"]
            if max(abs(one - other) for one, other in zip(found, self._vector, strict=True)) > 1e-5:
                self.faults.append("a vector is wrong")
        return response.status_code

    async def _leaves(self, client: httpx.AsyncClient) -> int:
        with contextlib.suppress(httpx.ReadTimeout):
            body = self._asked(max_tokens=2000, logit_bias={"0": -100})
            await client.post("/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.1))
            return 200
        return 0

    async def _leaves_stream(self, client: httpx.AsyncClient) -> int:
        body = self._asked(max_tokens=2000, logit_bias={"0": -100}, stream=True)
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                return 0
        return response.status_code

    async def _nonsense(self, client: httpx.AsyncClient) -> int:
        body, path = self._random.choice(NONSENSE), self._random.choice(("/v1/completions", "/v1/models", "/x"))
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        return response.status_code

    async def _oversized(self, client: httpx.AsyncClient) -> int:
        return (await client.post("/v1/completions", json={"prompt": "x" * 2**21})).status_code

    async def _slow_body(self, client: httpx.AsyncClient) -> int:
        reader, writer = await self._connect()
        try:
            writer.write(_head(1000))
            answer = asyncio.create_task(reader.readline())
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    writer.write(b" ")
                    await writer.drain()
                await asyncio.wait({answer}, timeout=0.3)
            return int((await answer).split()[1])
        finally:
            writer.close()

    async def _reads_nothing(self, client: httpx.AsyncClient) -> int:
        _, writer = await self._connect()
        try:
            body = self._asked(max_tokens=2000, logit_bias={"0": -100}, stream=True, logprobs=20, n=2)
            data = json.dumps(body).encode()
            writer.write(_head(len(data)) + data)
            await asyncio.sleep(3 * CLIENT_SECONDS)
            return 0
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        return await asyncio.open_connection(sock=connection, limit=256)


def _head(length: int) -> bytes:
    about = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join(["POST /v1/completions HTTP/1.1", *about, "", ""]).encode()


def resident_bytes(process: int) -> int:
    """The memory that a process has in RAM."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def metric(url: str, name: str) -> float:
    """A value of the server's metrics."""
    page = httpx.get(f"{url}/metrics", timeout=20).text
    return float(re.search(rf"^{name} (\S+)", page, re.MULTILINE)[1])


def wait_until(is_met, seconds: float) -> bool:
    """Whether something happens within a time."""
    until = time.monotonic() + seconds
    while not (met := is_met()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(met)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="how many at most")
    parser.add_argument("--connections", type=int, default=200, help="how many at a time")
    parser.add_argument("--seconds", type=float, default=600, help="how long at most")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the clients")
    parser.add_argument("--most-growth", type=float, default=0.05, help="of memory, as a share (default 0.05)")
    given = parser.parse_args()
    command = [sys.executable, "-m", "rwkv_engine", "serve", "tales", "--port", "0", "--slots", str(SLOTS)]
    command += ["--most-waiting", str(WAITING), "--client-seconds", str(CLIENT_SECONDS)]
    command += ["--cache-bytes", str(CACHE_BYTES)]  # small, so that it is full when memory begins to count
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        try:
            first = server.stderr.readline()
            threading.Thread(target=lambda: log.writelines(server.stderr), daemon=True).start()
            url = re.search(r"http://[^/\"]+", first.decode())[0]
            assert wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 60), "the server is not ready"
            report, faults = soak(given, url, server.pid)
            server.terminate()
            if server.wait(60):
                faults.append(f"the server ended with {server.returncode}")
        finally:
            server.kill()
    print(json.dumps(report | {"faults": len(faults), "examples": faults[:5]}))
    sys.exit(bool(faults))


def soak(given: argparse.Namespace, url: str, process: int) -> tuple[dict, list[str]]:
    """Runs the clients, and reports on the server's process."""
    run = Soak(url, given.seconds, given.requests, given.seed)
    sizes = [resident_bytes(process)]
    has_ended, interval = threading.Event(), given.seconds / 50

    def measure() -> None:
        while not has_ended.wait(interval):
            sizes.append(resident_bytes(process))

    measuring = threading.Thread(target=measure)
    measuring.start()
    began = time.monotonic()
    asyncio.run(run.run(given.connections))
    seconds = time.monotonic() - began
    has_ended.set()
    measuring.join()
    if not wait_until(lambda: metric(url, "rwkv_texts") == 0, 60):
        run.faults.append(f"{metric(url, 'rwkv_texts')} places were not given back")
    sizes.append(resident_bytes(process))
    warm = max(sizes[: 1 + round(max(20, given.seconds / 10) / interval)])
    growth = sizes[-1] / warm - 1
    if growth > given.most_growth:
        run.faults.append(f"memory grew by {growth:.1%} after warming up")
    return {
        "requests": sum(run.statuses.values()),
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(run.statuses.items())),
        "megabytes": {"start": sizes[0] >> 20, "warm": warm >> 20, "end": sizes[-1] >> 20},
        "growth": round(growth, 4),
    }, run.faults


if __name__ == "__main__":
    main()
