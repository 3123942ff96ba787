"""Biases, bans and penalties of the texts in a pool, in tensors at fixed addresses, as CUDA graphs need them."""

from __future__ import annotations

import torch
from torch import Tensor


class Adjustments:
    """What is added to the logits of each slot, and the tokens generated in it. A slot's row is set by its user.

    Attributes:
        n_vocab, device: V, and the device of the tensors.
        offsets: (S, V) float64, the biases, and -inf for banned tokens.
        seen: (S, V) bool, whether a token has been generated.
        counts: (S, V) float64, how often, with older occurrences weighted less.
    """

    def __init__(self, slots: int, n_vocab: int, device: torch.device):
        """`slots`: S, with the dummy slot, whose row only padding changes."""
        self.n_vocab, self.device = n_vocab, device
        self.offsets = torch.zeros(slots, n_vocab, dtype=torch.float64, device=device)
        self.seen = torch.zeros(slots, n_vocab, dtype=torch.bool, device=device)
        self.counts = torch.zeros(slots, n_vocab, dtype=torch.float64, device=device)

    def adjusted(self, logits: Tensor, slots: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
        """The logits (B, V) after all of this, float64, with the arithmetic of `generation.Sampler.adjusted`.

        Args:
            logits: (B, V).
            slots: (B,) int64.
            presence, frequency: (B,) float64, the penalties; rows without penalties have zeros.
        """
        seen, counts = self.seen.index_select(0, slots).double(), self.counts.index_select(0, slots)
        penalties = presence.unsqueeze(-1) * seen + frequency.unsqueeze(-1) * counts
        return logits.double() + self.offsets.index_select(0, slots) - penalties

    def count(self, ids: Tensor, slots: Tensor, decay: Tensor) -> None:
        """Adds the sampled ids (B,) int64 to their slots, after multiplying counts by `decay` (B,) float64.

        A negative id stands for none. Slots may repeat, as those of padding do; their rows are then not defined.
        """
        places, is_sampled = ids.clamp(min=0).unsqueeze(-1), (ids >= 0).unsqueeze(-1)
        counts = self.counts.index_select(0, slots) * decay.unsqueeze(-1)
        self.counts.index_copy_(0, slots, counts.scatter_add(-1, places, is_sampled.double()))
        seen = self.seen.index_select(0, slots)
        self.seen.index_copy_(0, slots, seen.scatter(-1, places, seen.gather(-1, places) | is_sampled))
