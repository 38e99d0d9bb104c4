"""RealNVP, and NICE's couplings: images by alternating masks, without 1x1 convolutions.

Dinh, Sohl-Dickstein, Bengio 2017, "Density Estimation using Real NVP"; Dinh, Krueger, Bengio 2014, "NICE".
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fastflow.models.image_flow import ImageFlow, check_sizes
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    CheckerboardCoupling,
    FlowSequential,
    Squeeze2d,
    TanhScale,
    coupling_net,
)


def realnvp_steps(
    count: int, channels: int, hidden_channels: int, *, checkerboard: bool, additive: bool
) -> list[nn.Module]:
    """Return `count` steps over [B, channels, H, W], each an actnorm and a coupling; the masks alternate."""
    width = channels if checkerboard else channels // 2  # of what the network sees, and transforms
    steps: list[nn.Module] = []
    for i in range(count):
        net: nn.Module = coupling_net(width, hidden_channels, width if additive else 2 * width)
        if not additive:
            net = TanhScale(net, width)
        kind = CheckerboardCoupling if checkerboard else AffineCoupling
        parts: dict[str, nn.Module] = {
            "actnorm": ActNorm(channels),
            "coupling": kind(net, form="additive" if additive else "exp", transform_first=i % 2 == 1),
        }
        steps.append(FlowSequential(OrderedDict(parts)))
    return steps


class RealNVP(ImageFlow):
    """RealNVP: in each level three couplings with checkerboard masks, a squeeze and three with channel-wise masks; in
    the last, four with checkerboard masks (section 3.6 of the paper).

    Two things differ from the paper: an actnorm stands in front of every coupling where the paper normalises by batch
    statistics, which depend on the other images; and the networks are Glow's, not residual ones.

    Args:
        in_channels: C of the images.
        n_levels: height and width are multiples of 2**(n_levels - 1).
        hidden_channels: of the coupling networks.
        additive: NICE's couplings, which only shift; the scales of actnorm take the place of NICE's diagonal scaling.
        backprop: "autograd", "recompute" or "invert": what a training step keeps in memory; see
            `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: a size is less than 1, or `backprop` is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_levels: int = 3,
        hidden_channels: int = 64,
        *,
        additive: bool = False,
        backprop: str = "autograd",
    ) -> None:
        sizes = {"in_channels": in_channels, "n_levels": n_levels, "hidden_channels": hidden_channels}
        check_sizes(**sizes)
        levels: list[FlowSequential] = []
        channels = in_channels
        for _ in range(n_levels - 1):
            flows = realnvp_steps(3, channels, hidden_channels, checkerboard=True, additive=additive)
            flows.append(Squeeze2d())
            channels *= 4
            flows += realnvp_steps(3, channels, hidden_channels, checkerboard=False, additive=additive)
            levels.append(FlowSequential(*flows))
            channels //= 2
        levels.append(
            FlowSequential(*realnvp_steps(4, channels, hidden_channels, checkerboard=True, additive=additive))
        )
        super().__init__(in_channels, levels, {**sizes, "additive": additive}, backprop=backprop)
