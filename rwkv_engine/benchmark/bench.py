"""The run: engines are started, measured round by round, and ended, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

from rwkv_engine.benchmark import machine
from rwkv_engine.benchmark.bandwidth import ReadBandwidth
from rwkv_engine.benchmark.models import BenchModel
from rwkv_engine.benchmark.plan import Settings, plan, positions
from rwkv_engine.benchmark.process import EngineSpec, Worker
from rwkv_engine.benchmark.record import EngineRecord, Report
from rwkv_engine.benchmark.rounds import run_rounds
from rwkv_engine.benchmark.subject import random_ids
from rwkv_engine.benchmark.traffic import bytes_per_token
from rwkv_engine.core import ModelConfig, Strategy

Tell = Callable[[str, int, int], None]

PROMPT = 16  # tokens read before the first token
WRITTEN = 256  # tokens of a trained model's own text, which all engines read


def bench(
    model: BenchModel, specs: Sequence[EngineSpec], peers: dict[int, list[int]], settings: Settings, tell: Tell
) -> Report:
    """Measures engines against each other.

    Args:
        model: what they run.
        specs: the engines, all of ours first.
        peers: for each of ours, by index, those it is compared with.
        settings: how much is measured.
        tell: called with what is being done, and how much of how much of it (0 of 0 where that is unknown).

    Raises:
        BenchmarkError: an engine failed.
    """
    config = model.config
    facts = machine.facts()
    records = [EngineRecord(spec.engine, spec.strategy, spec.path.name) for spec in specs]
    with ExitStack() as ended:
        workers = []
        for spec, record in zip(specs, records, strict=True):
            tell(f"starting {spec}", 0, 0)
            workers.append(ended.enter_context(_started(spec, record, settings.starts, config.n_vocab)))
        ids = random_ids(config.n_vocab, max(settings.prefill, default=WRITTEN))
        if not model.synthetic:
            ids = workers[0].ask("write", partial(tell, "writing a text"), tokens=WRITTEN)
        for worker, record in zip(workers, records, strict=True):
            worker.ask("read", ids=ids)
            record.about = worker.ask("about")
            record.zeros = [0.0] * config.n_layer if record.is_peer else worker.ask("zeros")
            placements = Strategy.parse(record.strategy).place(config)
            record.bytes_per_token = bytes_per_token(config, placements, record.zeros)
            if positions(settings) and not record.is_peer:
                title = f"reading {settings.position:,} tokens, {record.title}"
                worker.ask("go_to", partial(tell, title), positions=positions(settings))

        measured = plan(settings)
        count = (settings.rounds + 1) * sum(
            not (m.ours_alone and record.is_peer) for m in measured for record in records
        )
        done = iter(range(count))
        bandwidths = {device: ReadBandwidth(device) for device in {_device(s.strategy, config) for s in specs} - {""}}
        run_rounds(
            list(zip(workers, records, strict=True)),
            measured,
            settings.rounds,
            {i: bandwidths[d].measure for i, s in enumerate(specs) if (d := _device(s.strategy, config))},
            lambda what: tell(what, next(done), count),
        )
        for worker, record in zip(workers, records, strict=True):
            record.memory = worker.ask("memory")
    return Report(facts, model.facts, asdict(settings), records, peers)


def _started(spec: EngineSpec, record: EngineRecord, starts: int, n_vocab: int) -> Worker:
    """A worker that has loaded; ours are started several times, and the time to the first token is recorded."""
    for number in range(1 if record.is_peer else starts + 1):
        started = time.perf_counter()
        worker = Worker(spec)
        try:
            worker.ask("read", ids=random_ids(n_vocab, PROMPT))
            worker.ask("prefill", tokens=PROMPT)
            if number > 0:
                record.first_token.append(time.perf_counter() - started)
        except BaseException:
            worker.close()
            raise
        if record.is_peer or number == starts:
            return worker
        worker.close()
    raise AssertionError("a range that ends before its last number")


def _device(strategy: str, config: ModelConfig) -> str:
    """The one device that all of a model is on; empty where it is on several, which share no bandwidth."""
    devices = {placement.device for placement in Strategy.parse(strategy).place(config)}
    return devices.pop() if len(devices) == 1 else ""
