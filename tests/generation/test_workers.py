"""OpenMP's workers belong to the thread that performs the steps, and to no other one."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
import torch
from served import wait_until
from workers import compute, n_threads

from rwkv_engine.native.workers import end_workers


@pytest.fixture
def others():
    """The number of threads beside Python's and without workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    end_workers()
    yield n_threads()
    torch.set_num_threads(before)


def is_met(expected):
    wait_until(lambda: n_threads() == expected)
    return True


def test_a_thread_ends_its_workers(others):
    compute()
    assert is_met(others + 1)
    end_workers()
    assert is_met(others)
    end_workers()
    compute()
    assert is_met(others + 1)


def test_other_threads_keep_theirs(others):
    compute()
    thread = threading.Thread(target=end_workers)
    thread.start()
    thread.join()
    assert is_met(others + 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_workers_it_has_not(others):
    compute()
    if not (child := os.fork()):
        end_workers()
        os._exit(0)
    status = []
    wait_until(lambda: status.append(os.waitpid(child, os.WNOHANG)) or status[-1][0] == child)
    assert status[-1][1] == 0


def test_whoever_leaves_steps_to_another_thread_ends_its_workers(tales, others):
    compute()
    assert asyncio.run(tales.agenerate("The king", 4))  # the other thread has one now, for the prompt
    assert is_met(others + 1)
    end_workers()  # this thread has none
    assert n_threads() == others + 1
    assert tales.generate("The king", 4)
    assert is_met(others + 1)
    end_workers()
    assert is_met(others)
