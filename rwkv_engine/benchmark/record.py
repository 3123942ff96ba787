"""What was measured, raw: enough to compute every number that is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA = "rwkv_engine.bench.1"


@dataclass
class Series:
    """One measurement of one engine, round by round.

    Attributes:
        tokens: read in each round.
        seconds: that took; those of one round stand at the same index in all series.
        bandwidth: bytes per second that memory gave right before each; of "decode" alone, and only where all of the
            model is on one device.
    """

    tokens: int
    seconds: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)


@dataclass
class EngineRecord:
    """One engine.

    Attributes:
        engine, strategy: as in `EngineSpec`.
        file: the model it read, by its name alone.
        about: version, kernels, threads.
        bytes_per_token: read when one token is decoded, see `traffic`.
        zeros: of each layer, the share of the value matrix that is not read.
        first_token: seconds from the start of a process to the first token after a prompt; ours alone.
        memory: peaks of its process in bytes, see `MemoryWatch`.
        series: by the names of the measurements.
    """

    engine: str
    strategy: str
    file: str
    about: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: float = 0.0
    zeros: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    memory: dict[str, int] | None = None
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For people: engine with version, and strategy."""
        version = f" {self.about['version']}" if self.is_peer and "version" in self.about else ""
        return f"{self.engine}{version}, {self.strategy}"

    @property
    def is_peer(self) -> bool:
        """Whether it is another program."""
        return self.engine != "rwkv_engine"


@dataclass
class Report:
    """One run.

    Attributes:
        machine: see `machine.facts`.
        model: what was run: where it is from, its sizes.
        settings: how much was measured.
        engines: all of ours first.
        peers: for each of ours, by index, the indices of those it is compared with.
    """

    machine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    engines: list[EngineRecord]
    peers: dict[int, list[int]]

    def order(self) -> list[int]:
        """Indices for people: each of ours, then those it is compared with, unless they came before."""
        ours = [i for i, record in enumerate(self.engines) if not record.is_peer]
        return list(dict.fromkeys(i for one in ours for i in [one, *self.peers.get(one, [])]))
