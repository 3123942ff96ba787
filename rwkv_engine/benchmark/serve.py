"""A run with arriving requests: our engine serves them together and one by one, other programs one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple
from functools import partial

from rwkv_engine.benchmark import machine
from rwkv_engine.benchmark.arrivals import Arrival, draw_arrivals
from rwkv_engine.benchmark.lineup import EngineSpec
from rwkv_engine.benchmark.models import BenchModel
from rwkv_engine.benchmark.process import Worker
from rwkv_engine.benchmark.report import EngineRecord
from rwkv_engine.benchmark.rounds import SETTLING
from rwkv_engine.benchmark.serve_report import ServeReport, ServeSettings, Way
from rwkv_engine.benchmark.subject import random_ids
from rwkv_engine.progress import StageProgress


def serve(model: BenchModel, specs: Sequence[EngineSpec], settings: ServeSettings, tell: StageProgress) -> ServeReport:
    """Measures engines, each in its own process, one at a time.

    Args:
        model: the model they run.
        specs: the engines, all of ours first; others can only be the `rwkv` package.
        settings: how much is measured.
        tell: called with the current stage and how far it is.

    Raises:
        BenchmarkError: an engine failed.
    """
    n_vocab = model.config.n_vocab
    arriving = draw_arrivals(
        settings.requests, settings.rate, settings.prompts, settings.answers, n_vocab, settings.seed
    )
    length = settings.at_once_prompt
    ids = random_ids(n_vocab, max(settings.at_once * length, settings.entering))
    at_once = [
        Arrival(0.0, ids[i * length : (i + 1) * length], settings.at_once_answer) for i in range(settings.at_once)
    ]
    facts, ways = machine.facts(), list[tuple[Worker, Way]]()
    with ExitStack() as ended:
        for spec in specs:
            tell(f"starting {spec}", 0, 0)
            worker = ended.enter_context(Worker(spec))
            record = EngineRecord(spec.engine, str(spec.strategy), spec.path.name, worker.ask("about"))
            ways += [(worker, Way(record, way)) for way in ((False,) if record.is_baseline else (True, False))]
            _warm_up(worker, at_once, record.is_baseline)
        count = settings.rounds * sum(2 + way.together for _, way in ways)
        done = iter(range(count))
        for number in range(settings.rounds):
            # Every second round goes through them backwards, so that none always follows the same one.
            for worker, way in reversed(ways) if number % 2 else ways:
                do = "together" if way.together else "in_turn"
                for what, arrivals, found in (
                    ("arriving", arriving, way.arriving),
                    ("at once", at_once, way.at_once),
                ):
                    tell(f"round {number + 1}: texts {what}, {way.title}", next(done), count)
                    time.sleep(SETTLING)
                    found.append(worker.ask(do, arrivals=[astuple(a) for a in arrivals]))
                if way.together:
                    tell(f"round {number + 1}: a long prompt, {way.title}", next(done), count)
                    prompt = ids[: settings.entering]
                    ask = partial(worker.ask, "beside_a_prompt", running=settings.running, steps=settings.steps)
                    way.beside.append(ask(prompt=prompt))
    return ServeReport(facts, model.facts, settings, arriving, at_once, [way for _, way in ways])


def _warm_up(worker: Worker, at_once: Sequence[Arrival], is_baseline: bool) -> None:
    """Serves a few tokens in each way, because first calls compile, allocate and start threads."""
    few = [(0.0, a.prompt, 3) for a in at_once]
    for do in ("in_turn",) if is_baseline else ("together", "in_turn"):
        worker.ask(do, arrivals=few)
