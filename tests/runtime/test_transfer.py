"""Copies from the host: their numbers, and that a GPU's come from pinned memory."""

from __future__ import annotations

import torch

from rwkv_engine.runtime import transfer
from rwkv_engine.runtime.transfer import copy_to, listed, moved


def test_numbers_arrive():
    host = torch.arange(6).view(2, 3)
    to = torch.zeros_like(host)
    copy_to(to, host)
    assert torch.equal(to, host)
    assert moved(host, torch.device("cpu")) is host


class OnGpu:
    """Stands for a tensor on a GPU, and notes what is copied to it."""

    is_cuda = True

    def __init__(self):
        self.copied = []

    def copy_(self, host, non_blocking):
        self.copied.append((host, non_blocking))


def test_a_gpu_gets_them_from_pinned_memory_without_waiting(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda host: ("pinned", host.tolist()))
    to = OnGpu()
    copy_to(to, torch.tensor([1, 2]))
    assert to.copied == [(("pinned", [1, 2]), True)]


def test_a_list_of_a_gpus_numbers_comes_over_pinned_memory(monkeypatch):
    log = []

    class Host:
        def copy_(self, ids, non_blocking):
            log.append(f"copy, waiting: {not non_blocking}")

        def tolist(self):
            log.append("read")
            return [7]

    class Ids(OnGpu):
        device = torch.device("cuda", 1)

        def __len__(self):
            return 1

    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, pin_memory: Host() if pin_memory else None)
    monkeypatch.setattr(transfer, "wait_for", lambda device: log.append(f"wait for {device}"))
    assert listed(Ids()) == [7]
    assert log == ["copy, waiting: False", "wait for cuda:1", "read"]
