"""The backward of `wn` on the CPU library."""

from __future__ import annotations

from fastflow.ops import registry
from fastflow.ops.wn.native import wn_backward_on
from fastflow.ops.wn_layer.cpu import library

registry.implement("cpu", "wn_backward", wn_backward_on(library))
