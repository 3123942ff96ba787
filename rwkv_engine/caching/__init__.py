"""States after prompts, which later prompts that begin in the same way continue from."""

from rwkv_engine.caching.state_cache import CacheStatistics, StateCache

__all__ = ["CacheStatistics", "StateCache"]
