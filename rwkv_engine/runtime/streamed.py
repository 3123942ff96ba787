"""Places the streamed layers of a model: their bytes in page-locked memory, their modules over buffers on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_engine.core.streaming import BUFFERS
from rwkv_engine.models import Model
from rwkv_engine.models.arrange import Arranged
from rwkv_engine.models.queues import Queues, cuda_queues
from rwkv_engine.models.streaming import Streaming
from rwkv_engine.runtime.plan import TensorPlan
from rwkv_engine.storage.page_locked import page_locked

ALIGNMENT = 256  # bytes, more than any kernel asks for


class Device(NamedTuple):
    """What streaming needs of a GPU; tests pass doubles.

    Attributes:
        queues: makes the queues of a device.
        page_locked: makes zeros (n,) uint8 in main memory that is page-locked for a device.
    """

    queues: Callable[[torch.device], Queues] = cuda_queues
    page_locked: Callable[[int, torch.device], Tensor] = page_locked


class _Part(NamedTuple):
    """The place of one matrix in the bytes of its layer; `scales` is None if it has none."""

    values: slice
    scales: slice | None
    plan: TensorPlan

    def views(self, layer: Tensor) -> Arranged:
        """Its tensors in the bytes of a layer, (n,) uint8."""
        values = layer[self.values].view(self.plan.weights.storage).view(self.plan.shape)
        return Arranged(values, None if self.scales is None else layer[self.scales].view(torch.float32))


class StreamedLayers:
    """The streamed layers of a model that is being loaded."""

    def __init__(self, plans: Mapping[str, TensorPlan], device: Device):
        """Allocates the memory of all layers, and the buffers.

        Args:
            plans: of all matrices that are streamed, by their original names; all for the same GPU.
            device: the GPU.
        """
        self._parts: dict[str, _Part] = {}
        sizes: dict[int, int] = {}
        for name, plan in plans.items():
            layer = plan.spec.layer
            self._parts[name], sizes[layer] = _part(plan, sizes.get(layer, 0))
        gpu = torch.device(next(iter(plans.values())).device)
        buffers = [torch.zeros(max(sizes.values()), dtype=torch.uint8, device=gpu) for _ in range(BUFFERS)]
        gpu = buffers[0].device  # with an index
        whole = device.page_locked(sum(sizes.values()), gpu)
        hosts = dict(zip(sizes, whole.split(list(sizes.values())), strict=True))
        self.streaming = Streaming(hosts, buffers, device.queues(gpu))
        self._hosts = hosts

    def put(self, name: str, arranged: Arranged) -> Arranged:
        """Copies a matrix to main memory; returns views of the buffer on the GPU, for the model's modules."""
        part = self._parts[name]
        layer = part.plan.spec.layer
        for target, source in zip(part.views(self._hosts[layer]), arranged, strict=True):
            if target is not None and source is not None:
                target.copy_(source)
        return part.views(self.streaming.buffer_of(layer))

    def finish(self, model: Model) -> None:
        """Completes the model, after `put` was called for every matrix."""
        self.streaming.weights = dict(self._weights(model))
        model.streaming = self.streaming
        model.forget()

    def _weights(self, model: Model) -> Iterator[tuple[str, Tensor]]:
        """The tensors in main memory, by the names of their parameters in the model."""
        for name, part in self._parts.items():
            path, _, _ = name.rpartition(".")
            host = part.views(self._hosts[part.plan.spec.layer])
            parameters = model.get_submodule(path).named_parameters(path)
            for (key, _), tensor in zip(parameters, host, strict=False):
                assert tensor is not None
                yield key, tensor


def _part(plan: TensorPlan, begin: int) -> tuple[_Part, int]:
    """The place of a matrix whose layer has `begin` bytes already, and the bytes after it."""
    values = slice(begin, begin + torch.Size(plan.shape).numel() * plan.weights.storage.itemsize)
    end = _aligned(values.stop)
    n_scales = plan.weights.n_scales(plan.spec.shape)
    if not n_scales:
        return _Part(values, None, plan), end
    scales = slice(end, end + 4 * n_scales)
    return _Part(values, scales, plan), _aligned(scales.stop)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
