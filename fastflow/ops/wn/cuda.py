"""`wn` on the CUDA library: tf32 where PyTorch allows it, and the backward layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry
from fastflow.ops.wn.native import layered_on
from fastflow.ops.wn_layer.cuda import allows_tf32, library


def wn(h: Tensor, *rest: Any) -> Tensor:
    result: Tensor = torch.ops.fastflow_cuda.wn(h, *rest, allows_tf32(h))
    return result


registry.implement("cuda", "wn", wn)
registry.implement("cuda", "wn_backward", layered_on(library).wn_backward)
