"""What a run with arriving requests measured, raw, and the numbers computed from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rwkv_engine.benchmark.arrivals import Arrival, Times, first_tokens, gaps, percentile, tokens_per_second
from rwkv_engine.benchmark.report import EngineRecord, Spread

SCHEMA = "rwkv_engine.bench.serve.1"
PERCENTS = (50, 99)


@dataclass(frozen=True)
class ServeSettings:
    """How much is measured.

    Attributes:
        rate: arriving requests per second.
        requests: their number.
        prompts, answers: their smallest and largest numbers of tokens.
        seed: of the above.
        rounds: how often each way of serving serves all of them.
        at_once: the number of texts that arrive at the same time, in a measurement of its own.
        at_once_prompt, at_once_answer: their numbers of tokens.
        running: the number of texts that are running when a long prompt enters.
        entering: its number of tokens.
        steps: the tokens of each running text that are measured before it enters.
    """

    rate: float
    requests: int
    prompts: tuple[int, int]
    answers: tuple[int, int]
    seed: int
    rounds: int = 1
    at_once: int = 16
    at_once_prompt: int = 16
    at_once_answer: int = 64
    running: int = 8
    entering: int = 4000
    steps: int = 125


@dataclass
class Way:
    """One engine, and whether it serves requests together or one after the other.

    Attributes:
        record: the engine.
        together: whether texts run at the same time.
        arriving: the times of the tokens of requests that arrive one by one, round by round.
        at_once: those of texts that arrive at the same time.
        beside: what `serving.beside_a_prompt` returns, round by round; empty if texts do not run together.
    """

    record: EngineRecord
    together: bool
    arriving: list[Times] = field(default_factory=list)
    at_once: list[Times] = field(default_factory=list)
    beside: list[dict[str, list[float]]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The engine and the way."""
        return f"{self.record.title}, {'together' if self.together else 'one by one'}"


@dataclass
class ServeReport:
    """One run.

    Attributes:
        machine, model: as in `Report`.
        settings: how much was measured.
        arriving, at_once: the requests.
        ways: for each engine of ours together and one by one, then the other programs one by one.
    """

    machine: dict[str, Any]
    model: dict[str, Any]
    settings: ServeSettings
    arriving: Sequence[Arrival]
    at_once: Sequence[Arrival]
    ways: list[Way]

    def rate(self, way: Way, at_once: bool = False) -> Spread:
        """Tokens per second of all requests."""
        arrivals = self.at_once if at_once else self.arriving
        return Spread.of([tokens_per_second(arrivals, times) for times in (way.at_once if at_once else way.arriving)])

    def first(self, way: Way, percent: float) -> Spread:
        """A percentile of the seconds from arrival to first token."""
        return Spread.of([percentile(first_tokens(self.arriving, times), percent) for times in way.arriving])

    def gap(self, way: Way, percent: float) -> Spread:
        """A percentile of the seconds between tokens of the same text."""
        return Spread.of([percentile(gaps(times), percent) for times in way.arriving])

    def times_as_fast(self, way: Way, other: Way) -> Spread:
        """How many times as many tokens per second as another way, for texts that arrive at the same time."""
        pairs = zip(way.at_once, other.at_once, strict=True)
        speed: Callable[[Times], float] = lambda times: tokens_per_second(self.at_once, times)  # noqa: E731
        return Spread.of([speed(mine) / speed(its) for mine, its in pairs])


def beside(way: Way, which: str, percent: float) -> Spread:
    """A percentile of the gaps `before` or `beside` an entering prompt."""
    return Spread.of([percentile(found[which], percent) for found in way.beside])


def slowed(way: Way, percent: float) -> Spread:
    """The ratio of these gaps beside the prompt to those before it, computed within each round."""
    return Spread.of([percentile(f["beside"], percent) / percentile(f["before"], percent) for f in way.beside])


def as_json(report: ServeReport) -> dict[str, Any]:
    """The whole report in SI units: the raw numbers, and under `summary` what is computed from them."""

    def lengths(arrivals: Sequence[Arrival]) -> list[dict[str, float]]:
        return [{"seconds": a.seconds, "prompt": len(a.prompt), "tokens": a.tokens} for a in arrivals]

    return {
        "schema": SCHEMA,
        "machine": report.machine,
        "model": report.model,
        "settings": asdict(report.settings),
        "arriving": lengths(report.arriving),
        "at_once": lengths(report.at_once),
        "ways": [
            {
                "engine": way.record.engine,
                "strategy": way.record.strategy,
                "about": way.record.about,
                "together": way.together,
                "summary": _summary(report, way),
                "arriving": way.arriving,
                "at_once": way.at_once,
                "beside": way.beside,
            }
            for way in report.ways
        ],
    }


def _summary(report: ServeReport, way: Way) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokens_per_second": asdict(report.rate(way)),
        "first_token_seconds": {str(p): asdict(report.first(way, p)) for p in PERCENTS},
        "gap_seconds": {str(p): asdict(report.gap(way, p)) for p in PERCENTS},
        "at_once_tokens_per_second": asdict(report.rate(way, at_once=True)),
    }
    if way.together:
        found["at_once_times_as_fast"] = {
            other.title: asdict(report.times_as_fast(way, other)) for other in report.ways if not other.together
        }
        found["gap_seconds_beside_a_prompt"] = {
            which: {str(p): asdict(beside(way, which, p)) for p in PERCENTS} for which in ("before", "beside")
        } | {"ratio": {str(p): asdict(slowed(way, p)) for p in PERCENTS}}
    return found
