"""Which engines are measured and compared, whether memory has room for them, and what each reads per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkv_engine.benchmark.instruments import SIZE
from rwkv_engine.core import ModelConfig, Strategy
from rwkv_engine.core.config import Role
from rwkv_engine.core.hardware import free_memory
from rwkv_engine.errors import RequestError
from rwkv_engine.runtime.plan import TensorPlan, plan_tensors
from rwkv_engine.verification.baselines import is_installed, unsupported

PROCESS = 400_000_000  # bytes that a process needs besides its weights


@dataclass(frozen=True)
class EngineSpec:
    """One engine to measure.

    Attributes:
        engine: "rwkv_engine", or a name of `baselines.BASELINES`.
        strategy: in the grammar that our engine and the `rwkv` package share.
        path: the model.
    """

    engine: str
    strategy: Strategy
    path: Path

    def __str__(self) -> str:
        return f"{self.engine}, {self.strategy}"


def runnable(strategies: Sequence[str], config: ModelConfig) -> list[Strategy]:
    """The parsed strategies, each once, with `auto` decided for the model.

    Raises:
        StrategyError: one is malformed, or cannot run on this machine or with this model.
    """
    found: dict[Strategy, None] = {}
    for text in strategies:
        strategy = Strategy.parse(text)
        strategy.check_runnable()
        strategy = strategy.resolve(config)
        strategy.place(config)
        found[strategy] = None
    return list(found)


def lineup(
    strategies: Sequence[Strategy],
    baselines: Sequence[str],
    baseline_strategy: str | None,
    path: Path,
    config: ModelConfig,
) -> tuple[list[EngineSpec], dict[int, list[int]]]:
    """Our engine once for each strategy, and the programs it is compared with, under the same strategy in dense form.

    Args:
        strategies: of our engine, as `runnable` returns them.
        baselines: names of `baselines.BASELINES`.
        baseline_strategy: one strategy for all other programs instead.
        path: the model.
        config: its sizes.

    Returns:
        The engines, and for each of ours, by index, the indices of those it is compared with.

    Raises:
        RequestError: another program is not installed, or cannot run the model or the strategy.
        StrategyError: `baseline_strategy` is malformed.
    """
    specs = [EngineSpec("rwkv_engine", strategy, path) for strategy in strategies]
    compared: dict[int, list[int]] = {}
    for i, strategy in enumerate(strategies):
        for name in baselines:
            theirs = Strategy.parse(baseline_strategy) if baseline_strategy else strategy.with_weights("dense")
            _check_baseline(name, theirs, config)
            spec = EngineSpec(name, theirs, path)
            if spec not in specs:
                specs.append(spec)
            compared.setdefault(i, []).append(specs.index(spec))
    return specs, compared


def _check_baseline(name: str, strategy: Strategy, config: ModelConfig) -> None:
    if not is_installed(name):
        raise RequestError(f"compare: {name} is not installed; pip install 'rwkv-engine[bench]'")
    if reason := unsupported(name, config):
        raise RequestError(f"compare: {reason}")
    segments, shown = strategy.segments, str(strategy)
    if name == "rwkv" and not segments:
        raise RequestError(f"compare: the rwkv package knows no strategy {shown!r}; give --compare-strategy")
    is_plain = len(segments) == 1 and segments[0].weight_format == "dense" and not segments[0].streams
    if not is_plain and (name == "transformers" or config.version == 7):
        program = name if name == "transformers" else "the rwkv package's RWKV-7"
        raise RequestError(
            f"compare: {program} runs on one device in fp32, bf16 or fp16, got {shown!r}; give --compare-strategy"
        )


def check_memory(specs: Sequence[EngineSpec], config: ModelConfig) -> None:
    """Refuses more engines than main memory has room for at the same time.

    Raises:
        RequestError: there is too little memory.
    """
    free = free_memory("cpu")
    needed = SIZE
    for spec in specs:
        placements = spec.strategy.place(config)
        plans = plan_tensors(config, placements).values()
        needed += PROCESS + sum(plan.nbytes for plan in plans if plan.device == "cpu")
    if free is not None and needed > free:
        raise RequestError(
            f"memory: {len(specs)} engines at once need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give"
            " fewer of --strategy and --compare, or a smaller model"
        )


def bytes_per_token(config: ModelConfig, plans: Mapping[str, TensorPlan], zeros: Sequence[float]) -> float:
    """The bytes that decoding one token of one sequence moves: it reads all matrices and vectors, and one row of the
    embedding, and reads and writes the state, which in RWKV-7 is some percent of the rest.

    Padding of tiles is not counted; in the 169M shape it is below 0.1 % of the rest.

    Args:
        config: the model's sizes.
        plans: the plan of each tensor.
        zeros: for each layer the share of zeros in channel mixing's squared ReLU that its kernel skips.
    """
    state = sum(math.prod(field.shape) for field in config.state_fields())
    total = 2.0 * 4 * config.n_layer * state
    for plan in plans.values():
        spec, weights = plan.spec, plan.weights
        total += config.n_embd * weights.bytes_per_weight if spec.role is Role.EMBEDDING else plan.nbytes
        if spec.role is Role.SPARSE_MATRIX:  # its scales are always read
            total -= zeros[spec.layer] * math.prod(spec.shape) * weights.bytes_per_weight
    return total
