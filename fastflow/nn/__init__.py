"""The building blocks as modules."""

from fastflow.nn.actnorm import ActNorm
from fastflow.nn.conv import Conv1d
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.invconv import InvertibleConv1x1
from fastflow.nn.wn import WN

__all__ = ["WN", "ActNorm", "AffineCoupling", "Conv1d", "InvertibleConv1x1"]
