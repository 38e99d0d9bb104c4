"""`wn` in Triton: one launch per layer, the tensors re-laid once before the first."""

from __future__ import annotations

import torch
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.wn_layer.triton import dense, launch_layer, relaid, tap_major


def wn(
    h: Tensor,
    conv_weights: list[Tensor],
    conv_biases: list[Tensor],
    res_skip_weights: list[Tensor],
    res_skip_biases: list[Tensor],
    cond: Tensor | None,
    cond_weights: list[Tensor],
    cond_biases: list[Tensor],
    input_biases: list[Tensor],
    mask: Tensor | None,
    dilations: list[int],
    causal: bool,
    res_scale: float,
    skip_scale: float,
    last_residual: bool,
) -> Tensor:
    batch, channels, time = h.shape
    last = len(conv_weights) - 1
    unused = channels if last_residual else 0  # rows of the last layer that no one reads
    skip_channels = res_skip_weights[last].shape[0] - unused
    skips = h.new_empty(batch, time, skip_channels)
    if skips.numel() == 0:
        return skips.transpose(1, 2)
    x = tuning.aligned_channels_last(h)
    cond = relaid(cond)
    spare = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(min(last, 2))]
    for i in range(last + 1):
        rows = conv_weights[i].shape[0]
        first = unused if i == last else 0
        cond_i = cond
        if cond is not None and not cond_weights:  # projected for all layers at once: this layer's channels
            cond_i = cond[:, :, i * rows : (i + 1) * rows]
        h_out = spare[i % 2] if i < last else None
        launch_layer(
            x,
            tap_major(conv_weights[i]),
            dense(conv_biases[i]) if conv_biases else None,
            res_skip_weights[i][first:].contiguous(),
            dense(res_skip_biases[i][first:]) if res_skip_biases else None,
            cond_i,
            dense(cond_weights[i]) if cond_weights else None,
            dense(cond_biases[i]) if cond_biases else None,
            dense(input_biases[i]) if input_biases else None,
            mask,
            dilations[i],
            causal,
            res_scale,
            h_out=h_out,
            skip_in=skips if i > 0 else None,
            skip_out=skips,
            skip_scale=skip_scale if i == last else None,
        )
        if h_out is not None:
            x = h_out
    return skips.transpose(1, 2)


registry.implement("triton", "wn", wn)
