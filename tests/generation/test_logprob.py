"""What is kept of a token's log-probabilities."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from unittest import mock

import pytest

from rwkv_engine.generation import Logprob

TOP = ((5, -0.25), (70_000, -1.5), (2, -float("inf")))


def test_it_says_what_it_was_given():
    entry = Logprob(70_000, -1.5, iter(TOP))
    assert (entry.token, entry.logprob, entry.top) == (70_000, -1.5, TOP)
    assert repr(entry) == f"Logprob(token=70000, logprob=-1.5, top={TOP!r})"
    assert Logprob(1, -0.5).top == ()


def test_equal_entries_are_one_in_a_set():
    assert len({Logprob(5, -0.25, TOP), Logprob(5, -0.25, list(TOP)), Logprob(5, -0.25, TOP[:2])}) == 2
    assert Logprob(5, -0.25, TOP) != Logprob(5, -0.5, TOP)
    assert Logprob(5, -0.25, TOP) != (5, -0.25, TOP)


def test_it_is_copied_and_stored_but_does_not_change():
    entry = Logprob(5, -0.25, TOP)
    copies = [copy.copy(entry), copy.deepcopy(entry), *(pickle.loads(pickle.dumps(entry, n)) for n in range(6))]
    assert all(other == entry for other in copies)
    with pytest.raises(AttributeError, match="token"):
        entry.token = 6
    match entry:
        case Logprob(token, logprob, top):
            assert (token, logprob, top) == (5, -0.25, TOP)
    assert entry == mock.ANY


def test_twenty_pairs_take_little_memory():
    """As objects they take 2 kB."""
    values = [-i / 7 for i in range(20)]
    tracemalloc.start()
    entries = [Logprob(1000 + i, i / 3, [(n * 1000 + i, v + i) for n, v in enumerate(values)]) for i in range(1000)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(entries) < 700
