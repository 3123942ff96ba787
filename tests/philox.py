"""Philox in plain integers, to test ops.philox_uniform with."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds: four 32-bit words from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits.

    Args:
        seed: 64 bits, the key.
        sample: which of several samples of one prompt, 64 bits.
        position: how many tokens come before the one to be drawn, 64 bits.
    """
    counter = (position & _MASK, position >> 32, sample & _MASK, sample >> 32)
    high, low, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32))
    return ((high << 21) | (low >> 11)) * 2.0**-53
