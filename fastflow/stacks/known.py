"""All blocks that are known."""

from __future__ import annotations

from fastflow.stacks import (
    coqui,
    diffwave,
    espnet,
    flowavenet,
    glow_tts,
    outside,
    parallel_wavegan,
    transformers,
    vits,
    waveglow,
)
from fastflow.stacks.block import Block

BLOCKS: tuple[type[Block], ...] = (
    *outside.BLOCKS,
    *vits.BLOCKS,
    *glow_tts.BLOCKS,
    *coqui.BLOCKS,
    *espnet.BLOCKS,
    *transformers.BLOCKS,
    *waveglow.BLOCKS,
    *flowavenet.BLOCKS,
    *parallel_wavegan.BLOCKS,
    *diffwave.BLOCKS,
)
"""Every kind of block of every stack. Where two know the same module, the first that agrees with it replaces it."""
