"""Serves requests as they arrive, in the process of the engine, and says when each token was there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rwkv_engine.benchmark.arrivals import Arrival, Times, gaps
from rwkv_engine.benchmark.instruments import Clock
from rwkv_engine.generation import Sampler, SamplingParams
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler

TEMPERATURE, TOP_P = 0.8, 0.9
SETTLED = 16  # tokens of each text before gaps between tokens are measured

# Yields the continuation of a prompt; further arguments are the number of tokens, a seed, the temperature and top-p.
Generate = Callable[[Sequence[int], int, int, float, float], Iterator[object]]


class _Timed(Request):
    """A request that notes when its tokens are there."""

    def __init__(self, prompt: Sequence[int], tokens: int, seed: int, clock: Clock):
        params = SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
        super().__init__(prompt, Sampler(params), tokens)
        self.times: list[float] = []
        self._clock = clock

    def accept(self, token: int) -> bool:
        """See `Request.accept`."""
        self.times.append(self._clock())
        return True


def together(scheduler: Scheduler, arrivals: Sequence[Arrival], clock: Clock = time.perf_counter) -> Times:
    """Runs every request from its arrival on, in company."""
    requests = [_Timed(a.prompt, a.tokens, i, clock) for i, a in enumerate(arrivals)]
    coming = deque(sorted(range(len(arrivals)), key=lambda i: arrivals[i].seconds))
    live: list[_Timed] = []
    began = clock()

    def is_due() -> bool:
        return bool(coming) and clock() - began >= arrivals[coming[0]].seconds

    def is_time() -> bool:
        return is_due() or all(request.finish_reason for request in live)

    while coming or live:
        while is_due():
            live.append(requests[coming.popleft()])
            scheduler.add(live[-1])
        if live:
            scheduler.wait(is_time)
            live[:] = [request for request in live if not _ended(request)]
        else:
            time.sleep(max(0.0, arrivals[coming[0]].seconds - (clock() - began)))
    return [[t - began for t in request.times] for request in requests]


def in_turn(generate: Generate, arrivals: Sequence[Arrival], clock: Clock = time.perf_counter) -> Times:
    """Runs the requests one after the other, in the order of their arrival; each waits for those before it."""
    times: Times = [[] for _ in arrivals]
    began = clock()
    for i in sorted(range(len(arrivals)), key=lambda i: arrivals[i].seconds):
        time.sleep(max(0.0, arrivals[i].seconds - (clock() - began)))
        for _ in generate(arrivals[i].prompt, arrivals[i].tokens, i, TEMPERATURE, TOP_P):
            times[i].append(clock() - began)
    return times


def beside_a_prompt(
    scheduler: Scheduler, running: int, prompt: Sequence[int], steps: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Measures the gaps between tokens of running texts, before and while a long prompt enters.

    Args:
        scheduler: with room for one text more than `running`.
        running: the number of texts.
        prompt: the ids of the long prompt.
        steps: the number of tokens of each text before it enters.
        clock: in seconds.

    Returns:
        The seconds between tokens of all texts: `before` the prompt's arrival, and `beside` it, until its first token;
        and `first`, the one time from its arrival to its first token.
    """
    texts = [_Timed(prompt[i : i + 1], 10**9, i, clock) for i in range(running)]
    entering = _Timed(prompt, 1, running, clock)
    try:
        for text in texts:
            scheduler.add(text)
        scheduler.wait(lambda: all(len(text.tokens) >= SETTLED or _ended(text) for text in texts))
        settled = [len(text.times) for text in texts]
        scheduler.wait(lambda: all(len(text.tokens) >= SETTLED + steps or _ended(text) for text in texts))
        before = [text.times[n:] for text, n in zip(texts, settled, strict=True)]
        settled, arrived = [len(text.times) - 1 for text in texts], clock()
        scheduler.add(entering)
        scheduler.wait(lambda: _ended(entering))
        beside = [text.times[n:] for text, n in zip(texts, settled, strict=True)]
    finally:
        for request in (*texts, entering):
            scheduler.abort(request)
        scheduler.wait(lambda: all(request.finish_reason for request in texts))
    return {"before": gaps(before), "beside": gaps(beside), "first": [entering.times[0] - arrived]}


def _ended(request: Request) -> bool:
    if request.error:
        raise request.error
    return request.finish_reason is not None
