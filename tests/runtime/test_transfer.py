"""Copies from the host: their numbers, and that a GPU's come from pinned memory."""

from __future__ import annotations

import torch

from rwkv_engine.runtime.transfer import copy_to, moved


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
