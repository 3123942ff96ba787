"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rwkv_engine.caching import StateCache
from rwkv_engine.server.cache_metrics import CacheMetrics
from rwkv_engine.server.places import Places

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: counts requests by the path of their route and their status.
        seconds: how long they took, by the path of their route.
        first_piece: how long a streamed text took until its first piece, from its request on.
        prompt_tokens, generated_tokens: count tokens of texts that have ended, however they did.
    """

    def __init__(self, places: Places, cache: StateCache | None):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("rwkv_requests", "Requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "rwkv_request_seconds",
            "Time from a request to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_piece = Histogram(
            "rwkv_first_piece_seconds",
            "Time from a request to its first streamed piece of text.",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("rwkv_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.generated_tokens = Counter("rwkv_generated_tokens", "Generated tokens.", registry=registry)
        ProcessCollector(registry=registry)
        texts = Gauge("rwkv_texts", "Texts that run or wait for a slot.", registry=registry)
        texts.set_function(lambda: places.taken)
        Gauge("rwkv_texts_limit", "The number of texts at which further ones are refused.", registry=registry).set(
            places.most
        )
        if cache:
            registry.register(CacheMetrics(cache))

    def page(self) -> bytes:
        """The current values as text."""
        return generate_latest(self._registry)
