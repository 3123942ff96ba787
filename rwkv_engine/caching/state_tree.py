"""Prefixes of texts in a radix tree, some of them with a state.

Texts share the nodes of what they have in common, so the tree also tells where a text leaves those that it knows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from rwkv_engine.core.state import State

TOKEN_BYTES = array("i").itemsize


class Node:
    """A prefix that has a state, is pinned, or after which the known texts differ.

    Attributes:
        label: the tokens between its parent's prefix and its own end.
        parent: the node of the next shorter prefix; None at the root, whose prefix is empty.
        depth: the number of tokens of the prefix.
        children: the longer ones, by the first token of their labels.
        state: the state after the prefix, or None.
        is_pinned: whether it stays in the tree even without a state and without longer ones.
    """

    __slots__ = ("children", "depth", "is_pinned", "label", "parent", "state")

    def __init__(self, label: Sequence[int] = (), parent: Node | None = None):
        """A new leaf, which its parent does not know yet."""
        self.label = array("i", label)
        self.parent = parent
        self.depth: int = len(label) + (parent.depth if parent else 0)
        self.children: dict[int, Node] = {}
        self.state: State | None = None
        self.is_pinned = False


class StateTree:
    """A radix tree over token ids.

    Attributes:
        root: the empty prefix.
    """

    def __init__(self) -> None:
        """An empty tree."""
        self.root = Node()

    def path(self, tokens: array[int]) -> tuple[list[Node], int]:
        """Follows a text through the tree.

        Returns:
            The nodes whose prefixes the text begins with, shortest first, without the root; and the largest number of
            tokens that it has in common with any text in the tree, which may end inside the label of one more node.
        """
        nodes: list[Node] = []
        node = self.root
        while node.depth < len(tokens) and (child := node.children.get(tokens[node.depth])):
            common = _common(child.label, tokens[node.depth : child.depth])
            if common < len(child.label):
                return nodes, node.depth + common
            nodes.append(child)
            node = child
        return nodes, node.depth

    def insert(self, tokens: array[int]) -> Node:
        """The node of a prefix, which is added if it is missing. It is then given a state or a pin."""
        nodes, common = self.path(tokens)
        node = nodes[-1] if nodes else self.root
        if node.depth < common:
            node = self._split(node.children[tokens[node.depth]], common - node.depth)
        if common < len(tokens):
            node.children[tokens[common]] = leaf = Node(tokens[common:], node)
            return leaf
        return node

    def prune(self, node: Node) -> int:
        """Removes a node that has lost its state or pin, and then its parents, as far as nothing needs them.

        Returns:
            The number of tokens by which the labels have become fewer.
        """
        removed = 0
        while node.parent and not node.is_pinned and node.state is None and len(node.children) < 2:
            parent, first = node.parent, node.label[0]
            if node.children:
                [child] = node.children.values()
                child.label, child.parent = node.label + child.label, parent
                parent.children[first] = child
                break
            del parent.children[first]
            removed += len(node.label)
            node = parent
        return removed

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root."""
        left = list(self.root.children.values())
        while left:
            node = left.pop()
            left.extend(node.children.values())
            yield node

    @staticmethod
    def _split(node: Node, n: int) -> Node:
        """Puts a node between another and its parent, after `n` tokens of the label; returns it."""
        assert node.parent is not None
        upper = Node(node.label[:n], node.parent)
        node.parent.children[upper.label[0]] = upper
        node.label, node.parent = node.label[n:], upper
        upper.children[node.label[0]] = node
        return upper


def _common(label: array[int], tokens: array[int]) -> int:
    """The number of tokens after which the two differ, or the shorter one ends."""
    if label == tokens:
        return len(label)
    pairs = zip(label, tokens, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(label), len(tokens)))
