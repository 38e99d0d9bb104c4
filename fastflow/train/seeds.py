"""Seeds of generators, made of numbers."""

from __future__ import annotations


def mix(seed: int, number: int) -> int:
    """One 64-bit generator seed for two numbers; other pairs give unrelated streams (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + number + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
