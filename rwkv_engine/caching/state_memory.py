"""The states that a state cache keeps in memory, within a budget of bytes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from rwkv_engine.caching.state_tree import TOKEN_BYTES, Node, StateTree
from rwkv_engine.core.state import State

# The Python objects of one entry, in bytes, about.
_OVERHEAD = 4096


class Known(NamedTuple):
    """What is known of a text.

    Attributes:
        state: the state after its longest prefix that has one, which may not be modified; None if none has.
        n_common: the number of tokens that it has in common with any other text.
        pinned: the numbers of tokens after which it is pinned.
    """

    state: State | None
    n_common: int
    pinned: list[int]


class StateMemory:
    """States by owner and prefix. Those that were used least recently make room for others, unless they are pinned.

    Only one thread at a time may use it. Prefixes are never empty.

    Attributes:
        n_bytes: the size of all entries and prefixes, which is never above the limit.
        entries: the number of states.
        evictions: the number of states that were removed to make room.
    """

    def __init__(self, limit: int):
        """An empty one for `limit` bytes."""
        self.n_bytes = self.entries = self.evictions = 0
        self._limit = limit
        self._trees: dict[str, StateTree] = {}  # by owner
        self._recent: OrderedDict[Node, str] = OrderedDict()  # entries without a pin and their owners, oldest first
        self._promised: dict[Node, int] = {}  # the bytes of the states to come of what is pinned

    def known(self, tokens: Sequence[int], owner: str) -> Known:
        """What is known of a text; the state that is found counts as used."""
        nodes, n_common = self._path(tokens, owner)
        node = next((node for node in reversed(nodes) if node.state), None)
        if node:
            self._touch(node, owner)
        return Known(node.state if node else None, n_common, [node.depth for node in nodes if node.is_pinned])

    def add(self, tokens: Sequence[int], owner: str, state: State) -> None:
        """Keeps a copy of a state, unless what is pinned leaves no room."""
        node = self._node(tokens, owner)
        if node is None or node.state is None:
            if not self._make_room(tokens, owner, entry_bytes(state)):
                return
            node = self._insert(tokens, owner)
            self._promised.pop(node, None)
            node.state = state.to("cpu", copy=True)
            self.entries += 1
            self.n_bytes += entry_bytes(state)
        self._touch(node, owner)

    def pin(self, tokens: Sequence[int], owner: str, n_bytes: int) -> bool:
        """Makes the state after a prefix stay, as soon as there is one.

        Args:
            tokens, owner: the prefix, and whose it is.
            n_bytes: `entry_bytes` of the state to come.

        Returns:
            Whether there is room for it; otherwise it is not pinned.
        """
        node = self._node(tokens, owner)
        if node and node.is_pinned:
            return True
        more = 0 if node and node.state else n_bytes
        if node:
            self._recent.pop(node, None)
        if not self._make_room(tokens, owner, more + sum(self._promised.values())):
            if node and node.state:
                self._touch(node, owner)
            return False
        node = self._insert(tokens, owner)
        node.is_pinned = True
        if more:
            self._promised[node] = more
        return True

    def unpin(self, tokens: Sequence[int], owner: str) -> bool:
        """Lets a pinned state make room for others again; returns whether it was pinned."""
        node = self._node(tokens, owner)
        if not (node and node.is_pinned):
            return False
        node.is_pinned = False
        self._promised.pop(node, None)
        if node.state:
            self._touch(node, owner)
        self._prune(node, owner)
        return True

    def clear(self) -> None:
        """Removes all states. What is pinned stays pinned."""
        for owner, tree in list(self._trees.items()):
            for node in [node for node in tree.nodes() if node.state]:
                self._drop(node, owner)

    def _path(self, tokens: Sequence[int], owner: str) -> tuple[list[Node], int]:
        return self._trees.get(owner, StateTree()).path(array("i", tokens))

    def _node(self, tokens: Sequence[int], owner: str) -> Node | None:
        """The node of exactly this prefix, if there is one."""
        nodes, _ = self._path(tokens, owner)
        return nodes[-1] if nodes and nodes[-1].depth == len(tokens) else None

    def _make_room(self, tokens: Sequence[int], owner: str, n_bytes: int) -> bool:
        """Removes states until another one has room; returns whether it has."""
        while self.n_bytes + n_bytes + self._label_bytes(tokens, owner) > self._limit:
            if not self._recent:
                return False
            self._drop(*next(iter(self._recent.items())))
            self.evictions += 1
        return True

    def _label_bytes(self, tokens: Sequence[int], owner: str) -> int:
        """The memory that a prefix would take in the tree."""
        return TOKEN_BYTES * (len(tokens) - self._path(tokens, owner)[1])

    def _insert(self, tokens: Sequence[int], owner: str) -> Node:
        self.n_bytes += self._label_bytes(tokens, owner)
        return self._trees.setdefault(owner, StateTree()).insert(array("i", tokens))

    def _touch(self, node: Node, owner: str) -> None:
        if not node.is_pinned:
            self._recent[node] = owner
            self._recent.move_to_end(node)

    def _drop(self, node: Node, owner: str) -> None:
        """Removes the state of a node that has one."""
        assert node.state is not None
        if node.is_pinned:
            self._promised[node] = entry_bytes(node.state)
        self.entries -= 1
        self.n_bytes -= entry_bytes(node.state)
        node.state = None
        self._recent.pop(node, None)
        self._prune(node, owner)

    def _prune(self, node: Node, owner: str) -> None:
        tree = self._trees[owner]
        self.n_bytes -= TOKEN_BYTES * tree.prune(node)
        if not tree.root.children:
            del self._trees[owner]


def entry_bytes(state: State) -> int:
    """The memory that a state takes."""
    return sum(field.nbytes for field in state.fields.values()) + _OVERHEAD
