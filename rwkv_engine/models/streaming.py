"""Streaming: layers whose matrices stay in main memory, and are copied to the GPU while earlier layers run.

The GPU has a few buffers, each large enough for any streamed layer. Streamed layer k uses buffer k mod n, so the
parameters of its modules are views of fixed memory, and kernels and CUDA graphs need not know that it is streamed. In a
forward pass, with two buffers:

    copies:    copy 0 | copy 1 | after layer 0: copy 2 | after layer 1: copy 3 | ...
    compute:     resident layers | after copy 0: layer 0 | after copy 1: layer 1 | ...

Each layer is one copy of contiguous page-locked memory. A pass expects nothing from the pass before it, so it can be
captured as a CUDA graph, and a pass that an error has ended does no harm. The price is that the first copy of a pass
runs beside resident layers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rwkv_engine.models.queues import Queues
from rwkv_engine.models.turns import Turns


class Streaming:
    """The streamed layers of a model.

    Attributes:
        weights: the matrices and scales in main memory, by their names in the model's state dict.
        turns: reserves the buffers. A forward pass takes a turn by itself; a CUDA graph of one is replayed in a turn.
    """

    def __init__(
        self,
        hosts: Mapping[int, Tensor],
        buffers: Sequence[Tensor],
        queues: Queues,
        weights: Mapping[str, Tensor] | None = None,
    ):
        """Streams layers.

        Args:
            hosts: the bytes of each streamed layer, (n,) uint8 in page-locked main memory, by the layer's index.
            buffers: (m,) uint8 on the GPU, each at least as large as the largest of `hosts`.
            queues: of the GPU.
            weights: views of `hosts`, see above.
        """
        self._places = {layer: k for k, layer in enumerate(sorted(hosts))}
        self._hosts = [hosts[layer] for layer in self._places]
        self._buffers = buffers
        self._queues = queues
        self._ready: list[Any] = []  # for each copy of this pass, the event that it is done
        self.weights = weights or {}
        self.turns = Turns({buffer.device for buffer in buffers})

    @property
    def layers(self) -> frozenset[int]:
        """The indices of the streamed layers."""
        return frozenset(self._places)

    @property
    def nbytes(self) -> int:
        """The bytes that each forward pass copies to the GPU."""
        return sum(host.nbytes for host in self._hosts)

    def buffer_of(self, layer: int) -> Tensor:
        """The buffer that holds a streamed layer's bytes while the layer runs."""
        return self._buffers[self._places[layer] % len(self._buffers)]

    def host_of(self, layer: int) -> Tensor:
        """The bytes of a streamed layer in main memory."""
        return self._hosts[self._places[layer]]

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """The block runs each streamed layer once, in order, each inside of `layer`."""
        with self.turns.take():
            # The buffers are in use until the work of the last pass is done.
            self._queues.copies.wait(self._queues.compute.record())
            self._ready = []
            for _ in self._buffers:
                self._copy_next()
            try:
                yield
            finally:  # an error may have left copies that nothing waits for, while the buffers may be freed
                self._queues.compute.wait(self._queues.copies.record())

    @contextmanager
    def layer(self, layer: int) -> Iterator[None]:
        """The block runs this layer; a layer that is not streamed is left alone."""
        if layer not in self._places:
            yield
            return
        self._queues.compute.wait(self._ready[self._places[layer]])
        yield
        if len(self._ready) < len(self._hosts):  # then the next copy uses the buffer of this layer
            self._queues.copies.wait(self._queues.compute.record())
            self._copy_next()

    def _copy_next(self) -> None:
        k = len(self._ready)
        if k < len(self._hosts):
            buffer, host = self._buffers[k % len(self._buffers)], self._hosts[k]
            self._queues.copies.copy(buffer[: len(host)], host)
            self._ready.append(self._queues.copies.record())
