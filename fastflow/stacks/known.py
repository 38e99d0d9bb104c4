"""All blocks that are known."""

from __future__ import annotations

from fastflow.stacks import coqui, transformers, vits
from fastflow.stacks.block import Block

BLOCKS: tuple[type[Block], ...] = (*vits.BLOCKS, *coqui.BLOCKS, *transformers.BLOCKS)
"""Every kind of block of every stack. No two know the same module."""
