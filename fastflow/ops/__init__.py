"""The operations: public functions, the backends that run them, and `use_backend`."""

from fastflow.ops.actnorm.api import actnorm, actnorm_init
from fastflow.ops.affine_coupling.api import affine_coupling
from fastflow.ops.flow_step.api import flow_step
from fastflow.ops.gate.api import gate
from fastflow.ops.invconv1x1.api import PLU, invconv1x1
from fastflow.ops.registry import BackendError, use_backend
from fastflow.ops.wn.api import wn
from fastflow.ops.wn_layer.api import wn_layer

__all__ = [
    "PLU",
    "BackendError",
    "actnorm",
    "actnorm_init",
    "affine_coupling",
    "flow_step",
    "gate",
    "invconv1x1",
    "use_backend",
    "wn",
    "wn_layer",
]
