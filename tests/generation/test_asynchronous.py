"""Texts for asyncio: the same texts, whoever else runs, and whoever leaves."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref

import pytest
from served import wait_until

from rwkv_engine import RWKV, RequestError
from rwkv_engine.generation import AsyncTextStream
from rwkv_engine.generation.many import request_of
from rwkv_engine.generation.scheduler import Scheduler, scheduler_of

OPTIONS = {"temperature": 0.9, "top_p": 0.9, "seed": 3}
PROMPTS = ["Once upon a time", "The king", "", "Hänsel", {"prompt": "The fox", "temperature": 0.0}]


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tales):
    before = step_threads()  # of models that other modules' fixtures hold
    yield
    scheduler = scheduler_of(tales.engine)
    gc.collect()  # other schedulers, with which their threads end
    wait_until(lambda: len(step_threads() - before) <= bool(scheduler.background._orders))
    assert not scheduler.background._is_running
    pool = scheduler._steps._running._decoder.pool
    assert sorted(pool._free) == list(range(pool.dummy))
    assert not scheduler._steps.waiting


def step_threads():
    return {thread for thread in threading.enumerate() if thread.name == "rwkv_engine-steps"}


async def read(stream):
    return [piece async for piece in stream]


def stream_of(tales, scheduler, prompt, n, **options):
    return AsyncTextStream(scheduler, request_of(tales.tokenizer, 0, prompt, n, None, 0, options))


def test_pieces_are_those_of_stream(tales):
    options = OPTIONS | {"stop": ["the "], "logprobs": 1}
    stream = tales.astream("The king", 30, **options)
    pieces = asyncio.run(read(stream))
    expected = tales.stream("The king", 30, **options)
    assert "".join(pieces) == "".join(expected) == stream.request.text
    assert len(pieces) > 3
    assert all(pieces)
    assert stream.request.finish_reason == expected.finish_reason
    assert stream.request.generated.tokens == expected.tokens
    assert stream.request.generated.logprobs == expected.logprobs


@pytest.mark.slow
def test_one_and_many(tales):
    async def run():
        return (
            await tales.agenerate("The king", 12, **OPTIONS),
            await tales.agenerate(PROMPTS * 9, 12, **OPTIONS),
            {result.index: result.text async for result in tales.agenerate_many(PROMPTS, 12, **OPTIONS)},
            await tales.agenerate([]),
            await tales.agenerate("The king", 0),
        )

    one, many, by_index, *empty = asyncio.run(run())
    assert one == tales.generate("The king", 12, **OPTIONS)
    assert many == tales.generate(PROMPTS * 9, 12, **OPTIONS)
    assert by_index == dict(enumerate(many[:5]))
    assert empty == [[], ""]


@pytest.mark.slow
def test_many_tasks_share_steps_and_the_loop_runs_on(tales):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def run():
        ticking = asyncio.create_task(tick())
        streams = [tales.astream("The king", 15, sample=i, **OPTIONS) for i in range(50)]
        texts = await asyncio.gather(*map(read, streams))
        ticking.cancel()
        return ["".join(pieces) for pieces in texts]

    texts = asyncio.run(run())
    assert texts == tales.generate([{"prompt": "The king", "sample": i} for i in range(50)], 15, **OPTIONS)
    assert ticks > 50


@pytest.mark.slow
def test_tasks_that_are_cancelled_disturb_no_other(tales):
    rng = random.Random(4)

    async def run():
        tasks = []
        for i in range(50):
            n = 40 if i % 2 else 12
            tasks.append(asyncio.create_task(read(tales.astream("The king", n, sample=i, **OPTIONS))))
            await asyncio.sleep(rng.random() / 100)
            if rng.random() < 0.5:
                tasks[rng.randrange(len(tasks))].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(run())
    cancelled = [isinstance(result, asyncio.CancelledError) for result in results]
    assert 5 < sum(cancelled) < 45
    for i, result in enumerate(results):
        if not cancelled[i]:
            expected = tales.stream("The king", 40 if i % 2 else 12, sample=i, **OPTIONS)
            assert "".join(result) == "".join(expected)


@pytest.mark.parametrize("how", ["closed", "dropped", "cancelled", "loop ended"])
def test_a_text_that_nobody_reads_any_more_ends(how, tales):
    async def run():
        stream = tales.astream("The king", 100_000, stop_tokens=(), **OPTIONS)
        request = stream.request
        await anext(stream)
        if how == "loop ended":
            return request, stream
        if how == "closed":
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        elif how == "dropped":
            del stream
            gc.collect()
        else:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(read(stream), 0.05)
        while not request.finish_reason:
            await asyncio.sleep(0.01)
        return request, None

    request, stream = asyncio.run(run())
    while not request.finish_reason:
        time.sleep(0.01)
    assert request.finish_reason == "aborted"
    del stream


def test_a_slow_reader_stops_nobody_and_loses_nothing(tales):
    async def run():
        slow, got = tales.astream("The king", 30, **OPTIONS), []
        got.append(await anext(slow))
        while not slow.request.finish_reason:
            await asyncio.sleep(0.01)
        return got + await read(slow)

    assert "".join(asyncio.run(run())) == tales.generate("The king", 30, **OPTIONS)


def test_a_failed_step_raises_in_every_task_that_waits_for_it(tales, monkeypatch):
    scheduler, steps = Scheduler(tales.engine.model), 0
    step = scheduler._steps._running._decoder.step

    def failing(*arguments):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise ValueError("no memory")
        return step(*arguments)

    monkeypatch.setattr(scheduler._steps._running._decoder, "step", failing)

    async def run():
        streams = [stream_of(tales, scheduler, "The king", 20, **OPTIONS) for _ in range(3)]
        failed = await asyncio.gather(*map(read, streams), return_exceptions=True)
        return failed, await read(stream_of(tales, scheduler, "The king", 20, **OPTIONS))

    failed, later = asyncio.run(run())
    assert [str(error) for error in failed] == ["no memory"] * 3
    assert "".join(later) == tales.generate("The king", 20, **OPTIONS)


def test_an_error_of_the_thread_itself_reaches_its_tasks(tales, monkeypatch):
    scheduler = Scheduler(tales.engine.model)

    def broken():
        raise SystemExit("out of order")

    async def run():
        with monkeypatch.context() as patched:
            patched.setattr(scheduler, "_take_orders", broken)
            streams = [stream_of(tales, scheduler, "The king", 20, **OPTIONS) for _ in range(3)]
            # As results, because asyncio lets a SystemExit end the loop.
            results = await asyncio.gather(*map(outcome, streams))
        return results, await read(stream_of(tales, scheduler, "The king", 20, **OPTIONS))

    async def outcome(stream):
        try:
            return await read(stream)
        except BaseException as error:
            return error

    failed, later = asyncio.run(run())
    assert [str(error) for error in failed] == ["out of order"] * 3
    assert "".join(later) == tales.generate("The king", 20, **OPTIONS)


def test_wrong_requests_are_refused(tales):
    with pytest.raises(RequestError, match="temprature: there is no such argument; did you mean temp"):
        tales.astream("x", temprature=1)
    with pytest.raises(RequestError, match="prompt: expected text"):
        asyncio.run(tales.agenerate(5))
    with pytest.raises(RequestError, match=r"prompts\[1\]: prompt: expected text"):
        asyncio.run(tales.agenerate(["x", {"prompt": b"x"}]))
    with pytest.raises(RequestError, match="banned_tokens: got token 99999"):
        asyncio.run(tales.agenerate("x", banned_tokens=[99_999]))


def test_a_full_queue_refuses(tales):
    scheduler = Scheduler(tales.engine.model, slots=1, most_waiting=3)

    async def run():
        streams = [stream_of(tales, scheduler, "The king", 50, **OPTIONS) for _ in range(12)]
        return await asyncio.gather(*map(read, streams), return_exceptions=True)

    results = asyncio.run(run())
    refused = [str(result) for result in results if isinstance(result, RequestError)]
    assert 1 <= len(refused) <= 9  # one runs, three wait, and on a slow machine some have ended in time
    assert set(refused) == {"3 requests are waiting, which is the limit; try again later"}
    expected = tales.generate("The king", 50, **OPTIONS)
    assert all("".join(result) == expected for result in results if not isinstance(result, RequestError))


@pytest.mark.slow
def test_several_loops_and_threads_at_once(tales):
    found = {}

    async def run(name):
        texts = await asyncio.gather(
            *(tales.agenerate("The king", 25, seed=10 * name + i) for i in range(4)),
        )
        found.update({10 * name + i: text for i, text in enumerate(texts)})

    def wait(name):
        for i in range(4):
            found[10 * name + i] = tales.generate("The king", 25, seed=10 * name + i)

    threads = [threading.Thread(target=wait, args=[name]) for name in (1, 2)]
    threads += [threading.Thread(target=lambda name=name: asyncio.run(run(name))) for name in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert found == {seed: tales.generate("The king", 25, seed=seed) for seed in found}


def test_a_resting_thread_keeps_no_model_alive():
    model = RWKV.from_pretrained("tales")
    before = step_threads()
    assert asyncio.run(model.agenerate("The king", 4))
    assert len(step_threads() - before) == 1
    engine = weakref.ref(model.engine)
    del model
    gc.collect()
    assert engine() is None
    wait_until(lambda: step_threads() <= before)
