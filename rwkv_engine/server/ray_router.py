"""Chooses the replica for a request: the one that has read the longest prefix of its prompt, unless it is too busy."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from rwkv_engine.server.forwarding import Forwarded

_MOST_PREFIXES = 200_000  # that are remembered, about 40 MB


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Remembers which replica was last given each prefix. Replicas that are full are passed over by Ray Serve."""

    def initialize_state(self, most_ahead: int = 8) -> None:
        """Called once by Ray Serve.

        Args:
            most_ahead: a replica that has this many requests more than the least busy one gets no more of them for its
                prefixes. Without this, conversations that begin with the same message would all be on one replica.
        """
        self._most_ahead = most_ahead
        self._replica_of: OrderedDict[bytes, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which to try them; of those in one list Ray Serve takes the least busy."""
        # Ray Serve takes the first of those that are equally busy, and new conversations should be on all of them.
        replicas = random.sample(candidate_replicas, len(candidate_replicas))
        first = self._knowing(replicas, _prefixes(pending_request))
        if first is None or self._queued(first) - min(map(self._queued, replicas)) >= self._most_ahead:
            return [replicas]
        return [[first], [replica for replica in replicas if replica is not first]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Ray Serve when a replica was chosen."""
        for prefix in _prefixes(pending_request):
            self._replica_of[prefix] = replica_id
            self._replica_of.move_to_end(prefix)
        while len(self._replica_of) > _MOST_PREFIXES:
            self._replica_of.popitem(last=False)

    def _knowing(self, replicas: list[RunningReplica], prefixes: tuple[bytes, ...]) -> RunningReplica | None:
        """The replica that was last given the longest of the prefixes which any of them was given."""
        by_id = {replica.replica_id: replica for replica in replicas}
        known = (by_id.get(self._replica_of.get(prefix)) for prefix in reversed(prefixes))
        return next((replica for replica in known if replica), None)

    def _queued(self, replica: RunningReplica) -> int:
        """The number of its requests; 0 where Ray Serve knows none, as nothing was sent there for seconds."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _prefixes(pending_request: PendingRequest | None) -> tuple[bytes, ...]:
    request = pending_request.args[0] if pending_request and pending_request.args else None
    return request.prefixes if isinstance(request, Forwarded) else ()
