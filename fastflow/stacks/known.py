"""All blocks that are known."""

from __future__ import annotations

from fastflow.stacks import coqui, espnet, glow_tts, transformers, vits
from fastflow.stacks.block import Block

BLOCKS: tuple[type[Block], ...] = (
    *vits.BLOCKS,
    *glow_tts.BLOCKS,
    *coqui.BLOCKS,
    *espnet.BLOCKS,
    *transformers.BLOCKS,
)
"""Every kind of block of every stack. Where two know the same module, the first that agrees with it replaces it."""
