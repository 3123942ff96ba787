"""Who is measured against whom, and whether there is room for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rwkv_engine.benchmark.bandwidth import SIZE
from rwkv_engine.benchmark.peers import check_peer, float_strategy
from rwkv_engine.benchmark.process import EngineSpec
from rwkv_engine.core import ModelConfig, Strategy
from rwkv_engine.core.strategy import free_memory
from rwkv_engine.errors import RequestError
from rwkv_engine.runtime.plan import plan_tensors

PROCESS = 400_000_000  # bytes that a process needs besides its weights


def runnable(strategies: Sequence[str], config: ModelConfig) -> list[str]:
    """The normal forms, `auto` decided, each once.

    Raises:
        StrategyError: one cannot be parsed, or cannot run here or with this model.
    """
    found: dict[str, None] = {}
    for strategy in strategies:
        parsed = Strategy.parse(strategy)
        parsed.check_runnable()
        parsed = parsed.resolve(config)
        parsed.place(config)
        found[str(parsed)] = None
    return list(found)


def lineup(
    strategies: Sequence[str], peers: Sequence[str], peer_strategy: str | None, path: Path, config: ModelConfig
) -> tuple[list[EngineSpec], dict[int, list[int]]]:
    """Ours, one of each strategy, and the peers beside them: under the same strategy without int8 or int4.

    Args:
        strategies: of ours, as `runnable` returns them.
        peers: of `peers.PEERS`.
        peer_strategy: one for all peers instead.
        path: of the model.
        config: its sizes.

    Returns:
        The engines, and for each of ours, by index, the indices of its peers.

    Raises:
        RequestError: a peer is not installed, or cannot run this.
        StrategyError: `peer_strategy` cannot be parsed.
    """
    specs = [EngineSpec("rwkv_engine", strategy, path) for strategy in strategies]
    beside: dict[int, list[int]] = {}
    for i, strategy in enumerate(strategies):
        for peer in peers:
            theirs = peer_strategy or float_strategy(strategy)
            check_peer(peer, theirs, config)
            spec = EngineSpec(peer, theirs, path)
            if spec not in specs:
                specs.append(spec)
            beside.setdefault(i, []).append(specs.index(spec))
    return specs, beside


def check_memory(specs: Sequence[EngineSpec], config: ModelConfig) -> None:
    """Refuses more engines than main memory has room for, all at once.

    Raises:
        RequestError: it does not suffice.
    """
    free = free_memory("cpu")
    needed = SIZE
    for spec in specs:
        placements = Strategy.parse(spec.strategy).place(config)
        plans = plan_tensors(config, placements).values()
        needed += PROCESS + sum(plan.nbytes for plan in plans if plan.device == "cpu")
    if free is not None and needed > free:
        raise RequestError(
            f"memory: {len(specs)} engines at once need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give"
            " fewer of --strategy and --compare, or a smaller model"
        )
