"""A decoding step with biases, bans, penalties and masks of allowed tokens in the sampling behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_engine.models import Model
from rwkv_engine.ops.draw_tokens import draw_tokens
from rwkv_engine.runtime.adjustments import Adjustments
from rwkv_engine.runtime.bucket import Masks, RowSampling, SampledBucket
from rwkv_engine.runtime.graph import Capture
from rwkv_engine.runtime.pool import StatePool
from rwkv_engine.runtime.transfer import host_buffer, wait_for


class AdjustedBucket(SampledBucket):
    """As `SampledBucket`, in two captured functions, so that the host makes masks while the device does the step."""

    def __init__(self, model: Model, pool: StatePool, size: int, capture: Capture, adjustments: Adjustments):
        home, words = model.device_map.home, -(-model.config.n_vocab // 32)
        self._adjustments = adjustments
        self._host_masks = host_buffer((size, words), home, torch.int32).fill_(-1)
        self._masks = torch.empty_like(self._host_masks, device=home)
        self._has_masks = False
        super().__init__(model, pool, size, capture)

    def _record(self, capture: Capture) -> None:
        self._recorded_step, self._recorded_draw = capture(self._step), capture(self._draw)

    def run(
        self, tokens: Sequence[int], slots: Sequence[int], rows: Sequence[RowSampling], masks: Masks | None = None
    ) -> list[int]:
        """As there, with masks, and `NONE_ALLOWED` where one allows no token."""
        assert masks
        self._load(tokens, slots, rows)
        self._recorded_step()
        try:
            self._set_masks(masks())
        except BaseException:
            wait_for(self._inputs.device)  # whose copies from the host's buffers have to end
            raise
        self._recorded_draw()
        return self._read(len(slots))

    def _set_masks(self, masks: NDArray[np.int32] | None) -> None:
        host = self._host_masks.numpy()
        if masks is not None:
            host[: len(masks)] = masks
            host[len(masks) :] = -1
        elif self._has_masks:
            host[:] = -1
        self._has_masks = masks is not None

    def _sampled(self, keys: tuple[Tensor, Tensor, Tensor], slots: Tensor, top_k: Tensor, floats: Tensor) -> Tensor:
        temperatures, top_p, min_p, presence, frequency, decay = floats
        self._masks.copy_(self._host_masks, non_blocking=True)
        logits = self._adjustments.adjusted(self.logits, slots, presence, frequency)
        ids = draw_tokens(logits, temperatures, top_k, top_p, min_p, keys, self._masks)
        # A banned token's logit may have been NaN or infinite.
        ids = ids.masked_fill(~self.logits.sum(dim=-1, dtype=torch.float64).isfinite(), -1)
        self._adjustments.count(ids, slots, decay)
        return ids
