"""philox_uniform: the random numbers of sampling, u = Philox(seed, sample, position).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a pure function of a key and a
counter, so a random number does not depend on the device, the batch or earlier numbers. The seed is the key and
(position, sample) the counter, each with its lower 32 bits first; u consists of bits of the first two output words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.native import cpu_kernels
from rwkv_engine.ops._library import define

PHILOX_UNIFORM_SCHEMA = "philox_uniform(Tensor seeds, Tensor samples, Tensor positions) -> Tensor"
_WORD = 0xFFFFFFFF


def philox_uniform(seeds: Tensor, samples: Tensor, positions: Tensor) -> Tensor:
    """Uniform random numbers in [0, 1) with 53 random bits, the same on every device.

    Args:
        seeds: (B,) int64, whose 64 bits are the seed, see `as_int64`.
        samples: (B,) int64, the index among several samples of one prompt.
        positions: (B,) int64, the number of tokens before the one to be sampled.

    Returns:
        (B,) float64.

    Raises:
        RuntimeError: shapes, dtypes or devices do not match.
    """
    cpu_kernels.ensure_loaded()
    return torch.ops.rwkv_engine.philox_uniform(seeds, samples, positions)


def as_int64(bits: int) -> int:
    """The signed integer with the same 64 bits as an unsigned one."""
    return bits - (bits >> 63 << 64)


def philox_uniform_reference(seeds: Tensor, samples: Tensor, positions: Tensor) -> Tensor:
    """`philox_uniform` in plain torch."""
    k0, k1 = _words(seeds)
    c0, c1 = _words(positions)
    c2, c3 = _words(samples)
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return ((c0 << 21) | (c1 >> 11)).double() * 2.0**-53


def _words(bits: Tensor) -> tuple[Tensor, Tensor]:
    return bits & _WORD, (bits >> 32) & _WORD


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a times b, computed by halves of b: the unsigned product overflows int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | (low & 0xFFFF)


define(PHILOX_UNIFORM_SCHEMA, philox_uniform_reference, lambda seeds, *_: torch.empty_like(seeds, dtype=torch.float64))
