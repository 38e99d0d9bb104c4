"""The building blocks as modules."""

from fastflow.nn.actnorm import ActNorm
from fastflow.nn.checkerboard import CheckerboardCoupling
from fastflow.nn.conv import Conv1d
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.coupling_net import TanhScale, ZeroConv2d, coupling_net
from fastflow.nn.invconv import InvertibleConv1x1
from fastflow.nn.sequential import FlowSequential
from fastflow.nn.squeeze import Squeeze2d
from fastflow.nn.wn import WN

__all__ = [
    "WN",
    "ActNorm",
    "AffineCoupling",
    "CheckerboardCoupling",
    "Conv1d",
    "FlowSequential",
    "InvertibleConv1x1",
    "Squeeze2d",
    "TanhScale",
    "ZeroConv2d",
    "coupling_net",
]
