"""The result of one check, and the tolerances of comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Verdict = Literal["ok", "FAILED", "skipped", "info"]

# The largest difference allowed between two computations of the same logits or states, relative to their largest
# number. Rounding errors accumulate over the layers. In a small model they stay a factor of ten below these limits,
# while a fault (a wrong tensor, a wrong sign, a shift by one token) is far above them. int8 weights are as inexact as
# bfloat16 weights, and int4 weights three times as inexact.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "i8": 1e-1, "i4": 3e-1}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: the check's name.
        verdict: "ok" or "FAILED"; "skipped", with the reason in `what`; "info" for a measurement without a judgement.
        what: the finding in one line, for people.
        numbers: the same for programs, fit for JSON.
    """

    name: str
    verdict: Verdict
    what: str
    numbers: dict[str, Any] = field(default_factory=dict)


def judged(name: str, holds: bool, what: str, /, **numbers: Any) -> Check:
    """The result of a check that can fail."""
    return Check(name, "ok" if holds else "FAILED", what, numbers)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference divided by the largest expected number; infinite if any number is not finite."""
    difference = (got - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    return difference if torch.isfinite(got).all() and torch.isfinite(expected).all() else float("inf")
