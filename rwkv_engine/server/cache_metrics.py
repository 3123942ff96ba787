"""What a state cache has done, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rwkv_engine.caching import StateCache

# By the names of `CacheStatistics`.
COUNTERS = {
    "hits": "Prompts of which the cache had a state.",
    "misses": "Prompts of which it had none.",
    "tokens_saved": "Tokens of prompts that were not read because of that.",
    "evictions": "States that made room for others in memory.",
    "file_hits": "Prompts whose states came from files.",
    "file_evictions": "Files that made room for others.",
}
GAUGES = {
    "entries": "States in memory.",
    "n_bytes": "The memory that they take.",
    "files": "States in files.",
    "file_bytes": "The size of all files.",
}


class CacheMetrics(Collector):
    """Asks a cache whenever the metrics are read."""

    def __init__(self, cache: StateCache):
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        statistics = self._cache.statistics
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"rwkv_cache_{name}", text, getattr(statistics, name))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"rwkv_cache_{name.removeprefix('n_')}", text, getattr(statistics, name))
