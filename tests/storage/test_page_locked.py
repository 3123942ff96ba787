"""Page-locked memory: what CUDA is told, by a double of its runtime."""

from __future__ import annotations

import gc

import pytest
import torch

from rwkv_engine.storage.page_locked import page_locked

GPU = torch.device("cuda", 1)


class Runtime:
    """The two functions of `torch.cuda.cudart()`, and the ranges of memory that are locked."""

    def __init__(self, status: int = 0):
        self.status, self.locked, self.waited = status, {}, []

    def cudaHostRegister(self, address, size, flags):
        assert flags == 1
        if not self.status:
            self.locked[address] = size
        return self.status

    def cudaHostUnregister(self, address):
        assert self.waited == [GPU], "copies may still be running"
        del self.locked[address]


@pytest.fixture
def runtime(monkeypatch):
    double = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: double)
    monkeypatch.setattr(torch.cuda, "synchronize", double.waited.append)
    return double


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 5000, (4 << 20) + 1])
def test_memory_is_locked_until_its_last_view_is_gone(nbytes, runtime):
    tensor = page_locked(nbytes, GPU)
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (nbytes,))
    assert not tensor.any()
    [(address, size)] = runtime.locked.items()
    assert (address, size) == (tensor.data_ptr() or address, max(nbytes, 1))
    assert address % 4096 == 0
    view = tensor[:1]
    del tensor
    gc.collect()
    assert runtime.locked
    view.fill_(1)
    del view
    gc.collect()
    assert not runtime.locked


def test_a_refusal_is_a_lack_of_memory(runtime):
    runtime.status = 2
    with pytest.raises(MemoryError, match=r"CUDA cannot lock 0.00 GB .*cudaHostRegister returned 2"):
        page_locked(4096, GPU)
    assert not runtime.locked
