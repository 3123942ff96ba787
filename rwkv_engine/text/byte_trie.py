"""Greedy longest-match tokenization: the compiled trie (`csrc/kernels/cpu/byte_trie.h`) and a reference in Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from rwkv_engine.native import cpu_kernels

Encode = Callable[[bytes], list[int]]


def byte_trie(tokens: dict[int, bytes]) -> Encode:
    """Returns a function that splits bytes into tokens from left to right, always taking the longest match.

    Args:
        tokens: the bytes of each id. All must be different and not empty, and all 256 single bytes must be among them,
            so that there always is a match.
    """
    compiled = cpu_kernels.python_module("byte_trie")
    if compiled is None:
        return byte_trie_reference(tokens)
    trie = compiled.ByteTrie(tokens)
    return lambda data: memoryview(trie.encode(data)).cast("i").tolist()


def byte_trie_reference(tokens: dict[int, bytes]) -> Encode:
    """`byte_trie` in plain Python: at each position it tries the lengths of possible tokens, longest first."""
    ids = {token: i for i, token in tokens.items()}
    found = defaultdict(set)  # by the first two bytes, which leave few lengths
    for token in ids:
        found[token[:2]].add(len(token))
    lengths = {start: sorted(of_these | {1}, reverse=True) for start, of_these in found.items()}

    def encode(data: bytes) -> list[int]:
        result = []
        start = 0
        while start < len(data):
            for length in lengths.get(data[start : start + 2], (1,)):
                token = data[start : start + length]
                if token in ids:
                    break
            result.append(ids[token])
            start += len(token)
        return result

    return encode
