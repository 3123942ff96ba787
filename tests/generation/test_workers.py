"""OpenMP's workers belong to the thread that performs the steps, and to no other one."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
import torch
from served import wait_until
from workers import compute, n_threads

from rwkv_engine import RWKV
from rwkv_engine.generation.background import Background, Waiter
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


def test_whoever_leaves_steps_to_another_thread_ends_its_workers(others):
    model = RWKV.from_pretrained("tales")
    compute()
    assert asyncio.run(model.agenerate("The king", 4))  # the other thread has one now, for the prompt
    assert is_met(others + 1)
    end_workers()  # this thread has none
    assert n_threads() == others + 1
    assert model.generate("The king", 4)
    assert is_met(others + 1)
    end_workers()
    assert is_met(others)


def test_several_threads_have_the_workers_of_one(others):
    model = RWKV.from_pretrained("tales")
    expected = model.generate("The king", 20, seed=1)
    assert is_met(others + 1)
    texts = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: texts.append(model.generate("The king", 20, seed=1)))
        thread.start()
        thread.join()
    texts.append(model.generate("The king", 20, seed=1))
    assert texts == [expected] * 3
    assert is_met(others + 1)
    end_workers()
    assert n_threads() == others + 1, "this thread performed steps"


def test_threads_that_wait_learn_of_failures():
    background = Background()

    def perform(is_enough):
        raise MemoryError("none is left")

    for _ in range(2):
        with pytest.raises(MemoryError, match="none is left"):
            background.wait(lambda: False, perform)
    background.wait(lambda: True, perform)


def test_ctrl_c_ends_the_wait_and_the_work(monkeypatch):
    background, steps = Background(), []

    def perform(is_enough):
        while not is_enough():
            steps.append(time.sleep(0.001))

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            wait_until(lambda: steps)
            raise KeyboardInterrupt

    class InterruptedWaiter(Waiter):
        def __init__(self, is_enough):
            super().__init__(is_enough)
            self.is_over = Interrupted()

    monkeypatch.setattr("rwkv_engine.generation.background.Waiter", InterruptedWaiter)
    with pytest.raises(KeyboardInterrupt):
        background.wait(lambda: False, perform)
    monkeypatch.undo()
    wait_until(lambda: not background._is_running)
    n = len(steps)
    background.wait(lambda: len(steps) > n + 3, perform)
