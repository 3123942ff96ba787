"""A whole server: OpenAI's own client, clients that leave, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from served import httpx, in_thread, is_idle, openai, wait_until
from snippets import blocks_of

from rwkv_engine import RequestError
from rwkv_engine.embedding import embed
from rwkv_engine.server import embeddings

LONG = {"prompt": "The king", "max_tokens": 4000, "logit_bias": {"0": -1000}}
MESSAGES = [{"role": "user", "content": "Tell me of the sea."}]


@pytest.fixture(scope="module")
def running(tales):
    """A server in a thread, as `running.service` and `running.url`."""
    server, thread = in_thread(tales, slots=4, most_waiting=40)
    yield server
    server.handle_exit(signal.SIGTERM, None)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def ai(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    wait_until(lambda: is_idle(running.service))


def test_the_client_of_openai(ai, tales):
    assert [model.id for model in ai.models.list()] == ["tales"]
    options = {"model": "tales", "seed": 3, "max_tokens": 12, "temperature": 0.8, "top_p": 0.9}
    expected = tales.generate("The king", 12, seed=3, temperature=0.8, top_p=0.9, min_p=0.05)
    made = ai.completions.create(prompt="The king", extra_body={"min_p": 0.05}, logprobs=1, **options)
    assert made.choices[0].text == expected
    assert len(made.choices[0].logprobs.tokens) == made.usage.completion_tokens == 12
    stream = ai.completions.create(prompt="The king", extra_body={"min_p": 0.05}, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected

    reply = ai.chat.completions.create(messages=MESSAGES, n=2, logprobs=True, top_logprobs=1, **options)
    texts = [""] * 2
    *chunks, last = ai.chat.completions.create(
        messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}, **options
    )
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in reply.choices]
    assert last.usage == reply.usage
    assert all(entry.top_logprobs for choice in reply.choices for entry in choice.logprobs.content)

    vectors = ai.embeddings.create(model="tales", input=["The fox", "A wolf"])
    assert vectors.data[1].embedding == pytest.approx(tales.embed("A wolf", normalize=True).tolist())


def test_errors_are_those_of_the_client_of_openai(ai):
    with pytest.raises(openai.NotFoundError, match="gpt"):
        ai.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError) as raised:
        ai.chat.completions.create(model="tales", messages=MESSAGES, temperature=-1)
    assert raised.value.param == "temperature"
    with ai.completions.create(model="tales", prompt="x", n=44, stream=True, max_tokens=4000) as stream:
        next(stream)
        with pytest.raises(openai.RateLimitError) as refused:
            ai.completions.create(model="tales", prompt="x")
        assert refused.value.response.headers["retry-after"]


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [True, False])
def test_clients_that_leave_give_their_slots_back(running, is_stream):
    service = running.service
    body = LONG | {"n": 8, "stream": is_stream}
    if is_stream:
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/completions", json=body, timeout=0.3)
    wait_until(lambda: not service.in_flight)
    wait_until(lambda: is_idle(service))
    answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "The", "n": 8, "max_tokens": 2})
    assert answer.status_code == 200
    page = httpx.get(f"{running.url}/metrics").text
    assert float(re.search(r"^rwkv_generated_tokens_total (\S+)", page, re.MULTILINE)[1]) < 16000, "they ran on"


@pytest.mark.slow
def test_many_clients_at_once(running, tales):
    prompts = [{"prompt": prompt, "seed": seed} for prompt in ("The king", "A fox", "") for seed in range(14)]
    expected = tales.generate(prompts, 12, temperature=1.2)

    async def ask(client, i):
        body = prompts[i] | {"max_tokens": 12, "temperature": 1.2, "stream": i % 2 == 1}
        response = await client.post(f"{running.url}/v1/completions", json=body)
        if not body["stream"]:
            return response.json()["choices"][0]["text"]
        chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    async def run():
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(len(prompts))))

    assert asyncio.run(run()) == expected


def test_the_examples_of_the_documentation(running, capsys):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    local = text.replace("http://127.0.0.1:8000", running.url).replace("RWKV-4-Raven-1B5.pth", "tales")
    blocks = blocks_of("docs/serving.md", local)
    [example] = [block.code for block in blocks if "from openai" in block.code]
    exec(example, {})
    assert capsys.readouterr().out
    if shutil.which("curl"):
        [example] = [block.code for block in blocks if "curl" in block.code]
        shown = subprocess.run(["sh", "-c", example], capture_output=True, text=True, timeout=20, check=True).stdout
        assert shown.startswith('data: {"object":"text_completion"')
        assert shown.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_a_drain_ends_in_any_case(tales):
    server, thread = in_thread(tales, drain_seconds=0.1)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}) as response:
        received = response.iter_lines()
        next(received)
        server.handle_exit(signal.SIGTERM, None)
        with contextlib.suppress(httpx.HTTPError):
            assert "data: [DONE]" not in list(received)
    thread.join(20)
    assert not thread.is_alive()
    wait_until(lambda: is_idle(server.service))


@pytest.mark.slow
def test_embeddings_end_when_their_client_leaves(running, monkeypatch):
    errors = []

    def watched(*arguments, **options):
        try:
            return embed(*arguments, **options)
        except RequestError as error:
            errors.append(str(error))
            raise

    monkeypatch.setattr(embeddings, "embed", watched)
    body = {"input": [[5] * 10000] * 20}  # ids, because a text may not be encoded before the client leaves
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/embeddings", json=body, timeout=1)
    wait_until(lambda: errors)
    assert errors == ["nobody waits for these vectors any more"]
    assert not running.service.places.taken
    assert httpx.post(f"{running.url}/v1/embeddings", json={"input": "x"}, timeout=20).status_code == 200


def test_a_slow_reader_stops_nobody(running, tales):
    with httpx.stream("POST", f"{running.url}/v1/completions", json=LONG | {"stream": True}):
        answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "The", "seed": 1}, timeout=20)
        assert answer.json()["choices"][0]["text"] == tales.generate("The", 16, seed=1)
    wait_until(lambda: is_idle(running.service))


@pytest.mark.slow
def test_a_process_drains(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("mine\n")
    command = [sys.executable, "-m", "rwkv_engine", "serve", "tales", "--port", "0", "--keys", str(keys)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines = [json.loads(process.stderr.readline())]
            url = re.search(r"http://\S+", lines[0]["message"])[0].removesuffix("/v1")
            headers = {"authorization": "Bearer mine"}
            assert httpx.get(f"{url}/health", timeout=20).status_code == 200
            wait_until(lambda: httpx.get(f"{url}/ready", timeout=20).status_code == 200)
            assert httpx.post(f"{url}/v1/completions", json=LONG).status_code == 401
            body = LONG | {
                "stream": True,
                "max_tokens": 400,
                "prompt": "secret",
                "stream_options": {"include_usage": True},
            }
            reading = threading.Thread(target=lines.extend, args=[map(json.loads, process.stderr)])
            reading.start()
            with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as response:
                received = response.iter_lines()
                first = next(received)
                process.send_signal(signal.SIGTERM)
                wait_until(lambda: httpx.get(f"{url}/ready").status_code == 503)
                refused = httpx.post(f"{url}/v1/completions", json=LONG, headers=headers)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "draining"
                rest = [line for line in received if line.startswith("data: ")]
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] > 1
            assert first.startswith("data: ")
            assert process.wait(20) == 0
            reading.join(20)
        finally:
            process.kill()
    assert lines[-1]["message"] == "ended"
    assert "secret" not in json.dumps(lines)
    assert "mine" not in json.dumps(lines)
    assert {"route", "status", "seconds", "id"} <= lines[-2].keys()
