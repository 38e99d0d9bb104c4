"""The VITS of ESPnet, espnet2/gan_tts: its own WaveNet, wavenet/wavenet.py, and coupling, vits/residual_coupling.py.

Its Parallel WaveGAN is in parallel_wavegan.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn
from fastflow.stacks.couplings import ResidualCoupling
from fastflow.stacks.gated import GatedBlock, arguments, as_cond, as_mask


class WaveNet(GatedBlock):
    """`WaveNet` of `conv_layers`, conditioned layer by layer; every layer has residual rows.

    It masks what is added to the residual stream, ours the sum: the same where the input is zero outside the mask, as
    in all its callers, whose masking also makes the gradients there the same. Elsewhere the original runs.
    """

    stack = "ESPnet VITS"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        names = ("conv_layers", "use_first_conv", "use_last_conv", "scale_skip_connect")
        return all(hasattr(module, name) for name in names) and arguments(module) == ("x", "x_mask", "c", "g")

    @classmethod
    def objection(cls, module: Any) -> str | None:
        sizes = set()
        for i, layer in enumerate(module.conv_layers):
            named = {
                "conv": layer.conv,
                "conv1x1_out": layer.conv1x1_out,
                "conv1x1_aux": layer.conv1x1_aux,
                "conv1x1_glo": layer.conv1x1_glo,
            }
            for name, conv in named.items():
                if conv is not None and (reason := convs.objection(conv, f"conv_layers.{i}.{name}")):
                    return reason
            shapes = [None if c is None else (c.in_channels, c.out_channels, c.bias is None) for c in named.values()]
            sizes.add((*shapes, layer.residual_channels, layer.skip_channels, layer.scale_residual))
        return None if len(sizes) == 1 else "its layers differ in more than their dilations"

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        layer = module.conv_layers[0]
        mask = torch.ones_like(randn(2, 1, 11))
        mask[1, :, 7:] = 0
        into = module.first_conv.in_channels if module.use_first_conv else layer.residual_channels
        x = randn(2, into, 11)
        examples: list[dict[str, Any]] = [{"x": x * mask, "x_mask": mask}, {"x": x, "x_mask": mask}, {"x": x}]
        if layer.conv1x1_glo is not None:
            examples.append({"x": x * mask, "x_mask": mask, "g": randn(2, layer.conv1x1_glo.in_channels, 1)})
        if layer.conv1x1_aux is not None:
            examples.append({"x": x, "c": randn(2, layer.conv1x1_aux.in_channels, 11)})
        return examples

    def _named(self, name: str) -> list[Any]:
        layers: Any = self.conv_layers
        found = [getattr(layer, name) for layer in layers]
        return [] if found[0] is None else found

    def _convolutions(self) -> list[nn.Module]:
        names = ("conv", "conv1x1_out", "conv1x1_aux", "conv1x1_glo")
        return [conv for name in names for conv in self._named(name)]

    def _pack(self) -> Weights:
        into, out = self._named("conv"), self._named("conv1x1_out")
        aux, glo = ([convs.weight(c)[:, :, 0] for c in self._named(name)] for name in ("conv1x1_aux", "conv1x1_glo"))
        return Weights(
            [convs.weight(c) for c in into],
            [c.bias for c in into if c.bias is not None],
            [convs.weight(c)[:, :, 0] for c in out],
            [c.bias for c in out if c.bias is not None],
            [torch.cat(both, 1) for both in zip(aux, glo, strict=True)] if aux and glo else aux or glo,
            [],
        )

    def _masks_alike(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether it makes no difference that ours masks the whole residual stream."""
        if mask is None:
            return True
        # the first convolution's bias is not masked; and looking at x would break a graph that is being recorded
        if (
            self.use_first_conv
            or torch.compiler.is_compiling()
            or (x.is_cuda and torch.cuda.is_current_stream_capturing())
        ):
            return False
        return torch.equal(x * mask, x.to(torch.promote_types(x.dtype, mask.dtype)))

    def forward(self, x: Tensor, x_mask: Tensor | None = None, c: Tensor | None = None, g: Tensor | None = None) -> Any:
        network: Any = self
        first, count = network.conv_layers[0], len(network.conv_layers)
        given = [c is not None, g is not None]
        wanted = [first.conv1x1_aux is not None, first.conv1x1_glo is not None]
        dropped = any(layer.training and layer.dropout_rate > 0 for layer in network.conv_layers)
        if dropped or (any(given) and given != wanted) or not self._worth_it(x) or not self._masks_alike(x, x_mask):
            return super().forward(x, x_mask, c, g)
        h = network.first_conv(x) if network.use_first_conv else x
        cond = as_cond(c if g is None else g, h)
        if c is not None and g is not None:
            cond = torch.cat([c, g.expand(-1, -1, c.shape[2])], 1)
        h = self._stack(
            h,
            cond,
            as_mask(x_mask, h),
            dilations=[layer.conv.dilation[0] for layer in network.conv_layers],
            res_scale=math.sqrt(0.5) if first.scale_residual else 1.0,
            skip_scale=math.sqrt(1.0 / count) if network.scale_skip_connect else 1.0,
            last_residual=True,
        )
        if x_mask is not None:  # by which the original multiplies last, and so under autocast widens again
            h = h.to(torch.promote_types(h.dtype, x_mask.dtype))
        return network.last_conv(h) if network.use_last_conv else h


class Coupling(ResidualCoupling):
    """`ResidualAffineCouplingLayer`."""

    stack = "ESPnet VITS"
    parts = ("input_conv", "encoder", "proj")
    forward_arguments = ("x", "x_mask", "g", "inverse")
    mean_only_attribute = "use_only_mean"

    def _network(self, kept: Tensor, mask: Any, g: Tensor | None) -> Tensor:
        network: Any = self
        return network.proj(network.encoder(network.input_conv(kept) * mask, mask, g=g))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, x_mask: Any, g: Tensor | None = None, inverse: bool = False) -> Any:
        y, log_det = self._coupled(x, x_mask, g, inverse)
        return y if inverse else (y, log_det)


BLOCKS: tuple[type[Block], ...] = (WaveNet, Coupling)
