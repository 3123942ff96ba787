"""Samples tokens where steps are recorded as CUDA graphs, with the sampling in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_engine.generation.request import Request
from rwkv_engine.generation.sampling import History
from rwkv_engine.generation.sampling_rows import without_errors
from rwkv_engine.generation.token_mask import masks_of
from rwkv_engine.runtime.bucket import RowSampling
from rwkv_engine.runtime.decoder import Decoder


class Recorded:
    """The texts whose biases, bans and penalties are in the buffers of a decoder. Their histories are rows of these, so
    that the recording adds to them what it samples, and everybody else sees it."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._held: set[Request] = set()

    def sample(self, requests: Sequence[Request], slots: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Processes the unread token of each recordable request in its slot, and samples the next, see
        `Decoder.sample`."""
        tokens, rows = [request.unread[0] for request in requests], [_row(request) for request in requests]
        if not any(request.adjusts or request.allowed is not None for request in requests):
            return self._decoder.sample(tokens, slots, rows)
        for request, slot in zip(requests, slots, strict=True):
            self._hold(request, slot)

        def masks() -> NDArray[np.int32] | None:
            made = masks_of(requests, self._decoder.adjustments.n_vocab, torch.device("cpu"))
            return None if made is None else made.numpy()

        logits, ids = self._decoder.sample(tokens, slots, rows, masks)
        return logits, without_errors(requests, ids)

    def release(self, request: Request) -> None:
        """Takes a request's row of the buffers, which others get, away from it."""
        if request in self._held:
            self._held.remove(request)
            if request.history:
                seen, counts = request.history.seen, request.history.counts
                request.history.move(torch.empty_like(seen), torch.empty_like(counts))

    def _hold(self, request: Request, slot: int) -> None:
        if request in self._held:
            return
        params, of_slots = request.sampler.params, self._decoder.adjustments
        if params.logit_bias or params.banned_tokens:
            of_slots.offsets[slot].copy_(request.sampler.offset(of_slots.n_vocab, of_slots.device))
        else:
            of_slots.offsets[slot].zero_()
        if params.penalizes:
            request.history = request.history or History(1, of_slots.n_vocab, of_slots.device)
            request.history.move(of_slots.seen[slot : slot + 1], of_slots.counts[slot : slot + 1])
        self._held.add(request)


def is_recordable(request: Request) -> bool:
    """Whether a recording can sample a request's tokens: the kernels know what is done to its logits."""
    is_usual = not request.adjusts or type(request).adjusted is Request.adjusted
    return is_usual and not request.sampler.params.compat and not request.sampler.uncounted


def _row(request: Request) -> RowSampling:
    draw, params = request.sampler.draw, request.sampler.params
    seed, sample = request.key
    cuts = draw.top_k, draw.temperature, draw.top_p, draw.min_p
    return RowSampling(seed, sample, *cuts, params.presence_penalty, params.frequency_penalty, params.penalty_decay)
