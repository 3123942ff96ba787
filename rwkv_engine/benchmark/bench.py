"""A run: engines are started, measured round by round, and ended in any case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

from rwkv_engine.benchmark import machine
from rwkv_engine.benchmark.instruments import ReadBandwidth
from rwkv_engine.benchmark.lineup import EngineSpec, bytes_per_token
from rwkv_engine.benchmark.models import BenchModel
from rwkv_engine.benchmark.process import Worker
from rwkv_engine.benchmark.report import EngineRecord, Report
from rwkv_engine.benchmark.rounds import Settings, plan, positions, run_rounds
from rwkv_engine.benchmark.subject import random_ids
from rwkv_engine.checkpoints import Checkpoint
from rwkv_engine.core import ModelConfig, Strategy
from rwkv_engine.progress import StageProgress
from rwkv_engine.runtime.mixed_formats import mixed
from rwkv_engine.runtime.plan import plan_tensors

PROMPT = 16  # tokens of the prompt before the first token
GENERATED = 256  # tokens that a trained model generates, which all engines then read


def bench(
    model: BenchModel,
    specs: Sequence[EngineSpec],
    baselines: dict[int, list[int]],
    settings: Settings,
    tell: StageProgress,
) -> Report:
    """Measures engines against each other.

    Args:
        model: the model they run.
        specs: the engines, all of ours first.
        baselines: for each of our engines, by index, the indices of those it is compared with.
        settings: how much is measured.
        tell: called with the current stage and how far it is.

    Raises:
        BenchmarkError: an engine failed.
    """
    config = model.config
    facts = machine.facts()
    records = [EngineRecord(spec.engine, str(spec.strategy), spec.path.name) for spec in specs]
    with ExitStack() as ended:
        workers = []
        for spec, record in zip(specs, records, strict=True):
            tell(f"starting {spec}", 0, 0)
            workers.append(ended.enter_context(_started(spec, record, settings.starts, config.n_vocab)))
        ids = random_ids(config.n_vocab, max(settings.prefill, default=GENERATED))
        if not model.synthetic:
            ids = workers[0].ask("write", partial(tell, "generating a text"), tokens=GENERATED)
        for spec, worker, record in zip(specs, workers, records, strict=True):
            worker.ask("read", ids=ids)
            record.about = worker.ask("about")
            record.zeros = [0.0] * config.n_layer if record.is_baseline else worker.ask("zeros")
            plans, _ = mixed(Checkpoint.open(spec.path), plan_tensors(config, spec.strategy.place(config)))
            record.bytes_per_token = bytes_per_token(config, plans, record.zeros)
            if positions(settings) and not record.is_baseline:
                title = f"reading {settings.position:,} tokens, {record.title}"
                worker.ask("go_to", partial(tell, title), positions=positions(settings))

        measured = plan(settings)
        count = (settings.rounds + 1) * sum(
            not (m.ours_alone and record.is_baseline) for m in measured for record in records
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
    return Report(facts, model.facts, asdict(settings), records, baselines)


def _started(spec: EngineSpec, record: EngineRecord, starts: int, n_vocab: int) -> Worker:
    """A worker that has loaded; ours are started several times, to record the time to the first token."""
    for number in range(1 if record.is_baseline else starts + 1):
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
        if record.is_baseline or number == starts:
            return worker
        worker.close()
    raise AssertionError("the loop returns in its last turn")


def _device(strategy: Strategy, config: ModelConfig) -> str:
    """The device of a whole model; empty for a model on several devices, for which bandwidth means nothing."""
    devices = {placement.device for placement in strategy.place(config)}
    return devices.pop() if len(devices) == 1 else ""
