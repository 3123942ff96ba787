"""One layer of any RWKV version: what the model and its runtime ask of it.

Shapes: B sequences, T tokens, C = n_embd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.state import LayerState
from rwkv_engine.models.weights import InputMajor, Tiled
from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops.slots import replace_rows, rows_of


class Block(nn.Module):
    """One layer. The first layer also has ln0, which normalises the embedding.

    Each RWKV version derives a class from it that calls `__init__` with its config and the layer's index, and that
    implements `forward`. Fused `steps` for packed weights make decoding faster.

    Attributes:
        watched: the modules whose outputs `verify` reports besides the residual stream, by their names in the report.
        chains: whether `steps` with `before` reads the weights once, on the CPU with packed weights.
    """

    watched: ClassVar[Mapping[str, str]] = {}
    chains: ClassVar[bool] = False
    ln0: nn.LayerNorm

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        if index == 0:
            self.ln0 = float32_norm(config.n_embd, config.layer_norm_eps)
        self.ln1 = float32_norm(config.n_embd, config.layer_norm_eps)
        self.ln2 = float32_norm(config.n_embd, config.layer_norm_eps)

    def forward(
        self, x: Tensor, state: LayerState, first: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, LayerState, Tensor | None]:
        """Processes T tokens of each of B sequences, with gradients if autograd is enabled.

        Args:
            x: the residual stream, (B, T, C) float32; or (1, N, C) with `lengths`.
            state: the state of this layer; not modified.
            first: the tensor that layer 0 passes to all later layers, (B, T, ...), on this layer's device; None in
                layer 0, and in versions that pass nothing.
            lengths: the numbers of tokens of B texts, which x contains one after another, N in all. Products then take
                the rows of all of them at once.

        Returns:
            The residual stream, of the shape of x, the new state, and `first` for the layers after this one.
        """
        raise NotImplementedError("a version of RWKV implements this")

    def step(
        self, x: Tensor, state: LayerState, slots: Tensor | None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Processes one token of each of B sequences, without gradients.

        Args:
            x: the residual stream, (B, C) float32.
            state: the state of this layer, (S, ...); the rows `slots` are replaced in place.
            slots: (B,) int64 on this layer's device, see `ops.TimeMixing4Step`; None means S = B, in the same order.
            first: as for `forward`, (B, ...).

        Returns:
            The residual stream (B, C), and `first` for the layers after this one.
        """
        return self.steps([self], x, [state], slots, first)

    def _step_by_reading(
        self, x: Tensor, state: LayerState, slots: Tensor | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`step` by `forward`, as a text of one token."""
        before = {name: rows_of(field, slots) for name, field in state.items()}
        y, after, handed_on = self(x.unsqueeze(1), before, None if first is None else first.unsqueeze(1))
        for name, field in state.items():
            replace_rows(field, slots, after[name])
        return y.squeeze(1), None if handed_on is None else handed_on.squeeze(1)

    @classmethod
    def steps(
        cls,
        blocks: Sequence[Block],
        x: Tensor,
        states: Sequence[LayerState],
        slots: Tensor | None,
        first: Tensor | None = None,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Processes one token of each of B sequences by consecutive layers on one device, without gradients.

        Args:
            blocks: the layers, of this class.
            states: their states, as for `step`.
            x, slots, first: as for `step` of the first of them.
            before: (B,) int64, the state's row that each row of x begins from, see `ops.Blocks4Step`; None: its slot.

        Returns:
            What `step` of the last of them returns.
        """
        if before is not None:
            assert slots is not None
            rows, handed_on = [], []
            for b, (slot, origin) in enumerate(zip(slots.split(1), before.split(1), strict=True)):
                for field in (field for state in states for field in state.values()):
                    replace_rows(field, slot, rows_of(field, origin))
                own = None if first is None else first[b : b + 1]
                row, passed = cls.steps(blocks, x[b : b + 1], states, slot, own)
                rows.append(row)
                handed_on += [] if passed is None else [passed]
            return torch.cat(rows), torch.cat(handed_on) if handed_on else None
        if len(blocks) == 1:
            return blocks[0]._step_by_reading(x, states[0], slots, first)
        for block, state in zip(blocks, states, strict=True):
            x, first = block.step(x, state, slots, first)
        return x, first

    @property
    def is_packed(self) -> bool:
        """Whether the matrices have the memory layouts that the kernels of `step` read."""
        return any(isinstance(module, Tiled | InputMajor) for module in self.modules())

    @property
    def steps_as_it_reads(self) -> bool:
        """Whether `step` gives the bits that `forward` gives for the same tokens."""
        return False

    @property
    def sums_integers(self) -> bool:
        """Whether all matrices are int8 on the CPU: then the kernels of `step` and `forward` add up integers, in the
        same groups and parts."""
        matrices = [module for module in self.modules() if isinstance(module, Tiled | InputMajor)]
        are_int8 = self.is_packed and all(next(matrix.parameters()).dtype == torch.int8 for matrix in matrices)
        return are_int8 and self.device.type == "cpu" and cpu_kernels.status().kind != "reference"

    @property
    def device(self) -> torch.device:
        """The device of this layer."""
        return self.ln1.weight.device

    def forget(self) -> None:
        """Drops tensors that were computed from parameters; to be called after parameters were replaced or moved."""


def float32_norm(width: int, eps: float = 1e-5) -> nn.LayerNorm:
    """A LayerNorm with float32 parameters, whatever torch's default dtype is."""
    return nn.LayerNorm(width, eps, dtype=torch.float32)


def float32_parameter(*shape: int) -> nn.Parameter:
    """A float32 parameter without values: loading a checkpoint replaces it."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))
