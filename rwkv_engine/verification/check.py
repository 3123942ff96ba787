"""What one check found, and how far numbers may lie apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Verdict = Literal["ok", "FAILED", "skipped", "info"]

# How far logits and states of two ways to compute the same may lie apart, of the largest number in them. Rounding adds
# up over the layers: a small model stays ten times below, and what is wrong (a tensor, a sign, a shift by one token)
# lies far above. Weights in int8 are as far off as in bfloat16.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.int8: 1e-1}


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        verdict: "ok" or "FAILED"; "skipped", where `what` is the reason; "info" for what is neither right nor wrong.
        what: for people, in one line.
        numbers: the same for programs.
    """

    name: str
    verdict: Verdict
    what: str
    numbers: dict[str, Any] = field(default_factory=dict)


def judged(name: str, holds: bool, what: str, /, **numbers: Any) -> Check:
    """A check that can fail."""
    return Check(name, "ok" if holds else "FAILED", what, numbers)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected number; infinite where one of them is not finite."""
    difference = (got - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    return difference if torch.isfinite(got).all() and torch.isfinite(expected).all() else float("inf")
