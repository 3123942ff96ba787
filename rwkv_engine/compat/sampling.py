"""One draw with the `rwkv` package's parameters: as they are meant, and as the package does it.

In both, top-p looks at probabilities that no temperature has touched, then comes top-k, then the temperature; and
randomness is that of NumPy's global generator for logits on the CPU and of torch's for those on a GPU, so that a
program's own seed is what repeats a text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.distribution import documented, rwkv_package
from rwkv_engine.ops.draw_tokens import inverse_cdf


def draw(logits: Tensor, temperature: float, top_p: float, top_k: int) -> int:
    """An id, from the distribution that the parameters describe.

    Args:
        logits: (V,), -inf where a token is banned.
        temperature: at least 0; 0 takes the likeliest token.
        top_p: the fewest likeliest tokens whose probabilities sum to it stay; 1 is off, 0 takes the likeliest.
        top_k: of these only the k likeliest stay; 0 is off.

    Raises:
        RequestError: a value out of range, or logits to draw nothing from.
    """
    _require_numbers(logits)
    SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, compat="rwkv")  # checks them
    row = logits.double().unsqueeze(0)
    if temperature == 0 or top_p == 0:
        return int(row.argmax())
    likely = documented(row, 1.0, 0, top_p, 0.0)
    probs = documented(likely.log(), temperature, top_k, 1.0, 0.0)
    if row.device.type == "cpu":
        uniform = torch.tensor([np.random.random_sample()], dtype=torch.float64)
    else:
        uniform = torch.rand(1, dtype=torch.float64, device=row.device)
    return int(inverse_cdf(probs, uniform))


def draw_exactly(logits: Tensor, temperature: float, top_p: float, top_k: int) -> int:
    """The id that the package draws after the same seed; on a GPU but for the rounding of sums.

    Arguments as for `draw`, none of them checked.

    Raises:
        RequestError: logits to draw nothing from.
    """
    _require_numbers(logits)
    [probs] = rwkv_package(logits.float().unsqueeze(0), temperature, max(0, top_k), top_p)
    if probs.device.type != "cpu":
        return int(torch.multinomial(probs, 1))
    p = probs.numpy()
    return int(np.random.choice(len(p), p=p / p.sum()))


def as_logits(logits: Any) -> Tensor:
    """Logits as a tensor, from a tensor or a NumPy array.

    Raises:
        RequestError: they are neither, or not floating-point numbers.
    """
    try:
        tensor = torch.as_tensor(logits)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"logits: got {shown(logits)}, expected a tensor or an array: {error}") from error
    if not tensor.is_floating_point():
        raise RequestError(f"logits: got {tensor.dtype}, expected floating-point numbers")
    return tensor


def _require_numbers(logits: Tensor) -> None:
    if logits.ndim != 1 or not len(logits):
        raise RequestError(f"logits: got shape {tuple(logits.shape)}, expected those of one token, (V,)")
    highest = logits.max()  # NaN if there is one
    if not torch.isfinite(highest):
        what = "every token is banned" if highest == -torch.inf else "they hold NaN or infinity"
        raise RequestError(f"logits: nothing to draw from, {what}")
