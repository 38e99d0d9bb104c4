"""The WN block as a module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastflow.nn.conv import Conv1d, remove_weight_norm
from fastflow.nn.packing import PackingModule
from fastflow.ops.wn.api import wn


class Weights(NamedTuple):
    """The folded weights of all layers, as `fastflow.ops.wn` takes them."""

    conv_weights: list[Tensor]
    conv_biases: list[Tensor]
    res_skip_weights: list[Tensor]
    res_skip_biases: list[Tensor]
    cond_weights: list[Tensor]
    cond_biases: list[Tensor]

    def for_device(self) -> Weights:
        """Return the same weights in the layout in memory that kernels read: on a GPU tap, then channel."""
        if not self.conv_weights[0].is_cuda:
            return self
        return self._replace(conv_weights=[w.transpose(1, 2).contiguous().transpose(1, 2) for w in self.conv_weights])


class GatedStack(PackingModule[Weights]):
    """What stacks share, whatever the names of their parameters: folded weights and the call of `fastflow.ops.wn`.

    A subclass has the parameters and says in `_stored` which tensors count, and in `_pack` how they are laid out.

    Args:
        dilations: one per layer.
        causal: pad on the left only.
        res_scale: factor on each residual sum.
        skip_scale: factor on the sum of skips.
    """

    def __init__(
        self, dilations: Sequence[int], *, causal: bool = False, res_scale: float = 1.0, skip_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.dilations = list(dilations)
        self.causal, self.res_scale, self.skip_scale = causal, res_scale, skip_scale

    def _stored(self) -> list[Tensor]:
        raise NotImplementedError

    def _pack(self) -> Weights:
        raise NotImplementedError

    def weights(self) -> Weights:
        """Return the folded weights, as they are kept."""
        return self._packed.get(self._stored(), lambda: self._pack().for_device())

    def _stack(
        self, h: Tensor, cond: Tensor | None, mask: Tensor | None = None, weights: Weights | None = None
    ) -> Tensor:
        """Return the sum of skips [B, S, T] of `h` [B, C, T]; arguments as in `fastflow.ops.wn`.

        `weights` may stand in for the module's own.
        """
        weights = self.weights() if weights is None else weights
        return wn(
            h,
            weights.conv_weights,
            weights.conv_biases,
            weights.res_skip_weights,
            weights.res_skip_biases,
            cond,
            weights.cond_weights,
            weights.cond_biases,
            mask=mask,
            dilations=self.dilations,
            causal=self.causal,
            res_scale=self.res_scale,
            skip_scale=self.skip_scale,
        )

    def remove_weight_norm(self) -> None:
        """Replace weight norm by the plain weights it stands for, in place."""
        remove_weight_norm(self)


class WN(GatedStack):
    """WaveNet-style stack of gated dilated convolutions, [B, C, T] -> [B, S, T].

    The formula is in `fastflow.ops.wn`. Parameters carry the names of WaveGlow, Glow-TTS and VITS:
    `in_layers.i`, `res_skip_layers.i` (residual rows first; the last layer has skip rows only) and, with conditioning,
    one `cond_layer` for all layers.

    Args:
        n_channels: C, channels of the residual stream.
        n_layers: L.
        kernel_size: k, odd.
        cond_channels: C_c, channels of the conditioning; 0 for none.
        dilation_base: layer i has dilation `dilation_base` ** i; `dilations` overrides it.
        dilations: L dilations, or None.
        gate_channels: G, channels after the gate; None for C.
        skip_channels: S; None for C.
        causal: pad on the left only.
        res_scale: factor on each residual sum.
        skip_scale: factor on the sum of skips.
        weight_norm: keep weights as direction and length; they are folded once for inference, not per call.

    Raises:
        ValueError: a size is not positive, `kernel_size` is even, or `dilations` has not L entries.
    """

    def __init__(
        self,
        n_channels: int,
        n_layers: int,
        kernel_size: int,
        cond_channels: int = 0,
        *,
        dilation_base: int = 2,
        dilations: Sequence[int] | None = None,
        gate_channels: int | None = None,
        skip_channels: int | None = None,
        causal: bool = False,
        res_scale: float = 1.0,
        skip_scale: float = 1.0,
        weight_norm: bool = True,
    ) -> None:
        for name, size in (
            ("n_channels", n_channels),
            ("n_layers", n_layers),
            ("dilation_base", dilation_base),
        ):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}")
        dilations = [dilation_base**i for i in range(n_layers)] if dilations is None else list(dilations)
        if len(dilations) != n_layers:
            raise ValueError(f"`dilations` must have {n_layers} entries, one per layer; got {len(dilations)}")
        super().__init__(dilations, causal=causal, res_scale=res_scale, skip_scale=skip_scale)
        gate = n_channels if gate_channels is None else gate_channels
        skip = n_channels if skip_channels is None else skip_channels
        self.n_channels, self.cond_channels = n_channels, cond_channels
        # `Conv1d` holds the parameters; the operation does the arithmetic of the whole stack
        self.in_layers = nn.ModuleList(
            Conv1d(n_channels, 2 * gate, kernel_size, dilation=d, weight_norm=weight_norm) for d in self.dilations
        )
        self.res_skip_layers = nn.ModuleList(
            Conv1d(gate, skip + (n_channels if i < n_layers - 1 else 0), weight_norm=weight_norm)
            for i in range(n_layers)
        )
        self.cond_layer = Conv1d(cond_channels, 2 * gate * n_layers, weight_norm=weight_norm) if cond_channels else None

    def _stored(self) -> list[Tensor]:
        convs = [*self.in_layers, *self.res_skip_layers, *([] if self.cond_layer is None else [self.cond_layer])]
        return [t for conv in convs if isinstance(conv, Conv1d) for t in conv.stored()]

    def _pack(self) -> Weights:
        def folded(layers: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
            convs = [layer for layer in layers if isinstance(layer, Conv1d)]
            return [c.folded_weight() for c in convs], [c.bias for c in convs if c.bias is not None]

        conv_weights, conv_biases = folded(self.in_layers)
        res_skip_weights, res_skip_biases = folded(self.res_skip_layers)
        cond_weights: list[Tensor] = []
        cond_biases: list[Tensor] = []
        if self.cond_layer is not None:
            assert self.cond_layer.bias is not None
            rows = conv_weights[0].shape[0]
            cond_weights = list(torch.split(self.cond_layer.folded_weight()[:, :, 0], rows))
            cond_biases = list(torch.split(self.cond_layer.bias, rows))
        return Weights(
            conv_weights,
            conv_biases,
            [w[:, :, 0] for w in res_skip_weights],
            res_skip_biases,
            cond_weights,
            cond_biases,
        )

    def forward(
        self, h: Tensor, cond: Tensor | None = None, mask: Tensor | None = None, weights: Weights | None = None
    ) -> Tensor:
        """Return the sum of skips [B, S, T].

        Args:
            h: [B, C, T].
            cond: [B, C_c, T], [B, C_c, 1] for the whole length, or None exactly when `cond_channels` is 0.
            mask: [B, 1, T] or None.
            weights: used instead of the module's own `weights()`, such as these with others for the conditioning.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        if (cond is None) != (self.cond_layer is None):
            got = "None" if cond is None else list(cond.shape)
            raise ValueError(f"`cond` must be given exactly when `cond_channels` is not 0; got {got}")
        return self._stack(h, cond, mask, weights)
