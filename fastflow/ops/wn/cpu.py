"""The backward of `wn` on the CPU library."""

from __future__ import annotations

from fastflow.ops import registry
from fastflow.ops.wn.native import layered_on
from fastflow.ops.wn_layer.cpu import library

layered = layered_on(library)
registry.implement("cpu", "wn_backward", layered.wn_backward)
registry.implement("cpu", "wn_again", layered.again)
registry.implement("cpu", "wn_again_backward", layered.backward)
