"""Glow: images by an invertible network with 1x1 convolutions.

Kingma & Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions"; formulas follow `model.py` of
openai/glow.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fastflow.models.image_flow import ImageFlow, SplitPrior, check_sizes
from fastflow.nn import ActNorm, AffineCoupling, FlowSequential, InvertibleConv1x1, Squeeze2d, coupling_net
from fastflow.ops.affine_coupling.api import check_form


def glow_step(channels: int, hidden_channels: int, *, form: str, plu: bool) -> FlowSequential:
    """Return one step of flow over [B, channels, H, W]: actnorm, 1x1 convolution, coupling (figure 2a of the paper)."""
    half = channels // 2
    net = coupling_net(half, hidden_channels, half if form == "additive" else channels)
    parts: dict[str, nn.Module] = {
        "actnorm": ActNorm(channels),
        "invconv": InvertibleConv1x1(channels, plu=plu),
        "coupling": AffineCoupling(net, form=form),
    }
    return FlowSequential(OrderedDict(parts))


class Glow(ImageFlow):
    """Glow, `n_levels` levels of one squeeze and `n_steps` steps each.

    The first batch through `forward` sets every actnorm. The last level's learned prior, one mean and one standard
    deviation per channel, is an actnorm as well.

    Args:
        in_channels: C of the images.
        n_levels: L (published: 3): height and width are multiples of 2**L.
        n_steps: K, steps of flow in each level (32).
        hidden_channels: of the coupling networks (512).
        form: of the coupling: "sigmoid" as published for the affine one, "exp", or "additive".
        plu: 1x1 weights are learned as products of triangular matrices, else as they are.
        learned_prior: what leaves is normal with a mean and a standard deviation computed from what stays; else with 0
            and 1.
        backprop: "autograd", "recompute" or "invert": what a training step keeps in memory; see
            `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: a size is less than 1, or `form` or `backprop` is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_levels: int = 3,
        n_steps: int = 32,
        hidden_channels: int = 512,
        *,
        form: str = "sigmoid",
        plu: bool = True,
        learned_prior: bool = True,
        backprop: str = "autograd",
    ) -> None:
        sizes = {
            "in_channels": in_channels,
            "n_levels": n_levels,
            "n_steps": n_steps,
            "hidden_channels": hidden_channels,
        }
        check_sizes(**sizes)
        check_form(form)
        levels: list[FlowSequential] = []
        channels = in_channels
        for i in range(n_levels):
            channels *= 4
            flows: list[nn.Module] = [Squeeze2d()]
            flows += [glow_step(channels, hidden_channels, form=form, plu=plu) for _ in range(n_steps)]
            last = i + 1 == n_levels
            if learned_prior:
                flows.append(ActNorm(channels) if last else SplitPrior(channels))
            levels.append(FlowSequential(*flows))
            channels //= 2
        config = {**sizes, "form": form, "plu": plu, "learned_prior": learned_prior}
        super().__init__(in_channels, levels, config, backprop=backprop)
