"""Chooses the replica for a request: the one that has read the longest prefix of its prompt, unless it is full."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from rwkv_engine.server.forwarding import Forwarded

_MOST_PREFIXES = 200_000  # that are remembered, about 40 MB


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Remembers which replica was last given each prefix. Replicas that are full are passed over by Ray Serve."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called once by Ray Serve."""
        self._replica_of: OrderedDict[bytes, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which to try them; of those in one list Ray Serve takes the least busy."""
        for prefix in reversed(_prefixes(pending_request)):
            known = self._replica_of.get(prefix)
            first = [replica for replica in candidate_replicas if replica.replica_id == known]
            if first:
                return [first, [replica for replica in candidate_replicas if replica is not first[0]]]
        return [candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Ray Serve when a replica was chosen."""
        for prefix in _prefixes(pending_request):
            self._replica_of[prefix] = replica_id
            self._replica_of.move_to_end(prefix)
        while len(self._replica_of) > _MOST_PREFIXES:
            self._replica_of.popitem(last=False)


def _prefixes(pending_request: PendingRequest | None) -> tuple[bytes, ...]:
    request = pending_request.args[0] if pending_request and pending_request.args else None
    return request.prefixes if isinstance(request, Forwarded) else ()
