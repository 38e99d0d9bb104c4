"""WaveGlow: mel spectrogram to audio by an invertible network.

Prenger, Valle, Catanzaro 2018, "WaveGlow: A Flow-based Generative Network for Speech Synthesis"; names, shapes and
order of random draws follow NVIDIA/waveglow, `glow.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastflow.models.upsample import Upsample
from fastflow.models.vocoder import Vocoder, check_mel, check_synthesis, unit_noise
from fastflow.nn import WN, Conv1d, InvertibleConv1x1
from fastflow.nn.backprop import Step
from fastflow.nn.conv import remove_weight_norm
from fastflow.nn.packing import Packed
from fastflow.nn.wn import Weights
from fastflow.ops import checks, registry
from fastflow.ops.flow_step.api import flow_step
from fastflow.ops.invconv1x1.api import log_abs_det

CONDITIONINGS = ("sample", "group")
COMPOSITIONS = ("auto", "kept", "off")
SHORTEST_COMPOSED = {"cpu": 32, "cuda": 384}
"""Frames from which composed weights pay, where they are kept. Kernels work on slices of up to 32 frames of one phase
on a CPU (measured), and on tiles of 128 on a GPU (counted, see csrc/cuda/README.md)."""


class CouplingNet(WN):
    """WaveGlow's `WN`: the block between a 1x1 convolution in and one out.

    `end` starts at zero, so that an untrained coupling changes nothing.
    """

    def __init__(self, n_in_channels: int, cond_channels: int, n_layers: int, n_channels: int, kernel_size: int):
        super().__init__(n_channels, n_layers, kernel_size, cond_channels)
        self._composed: Packed[Weights] = Packed()
        self.start = Conv1d(n_in_channels, n_channels)
        self.end = Conv1d(n_channels, 2 * n_in_channels, weight_norm=False)
        assert self.end.weight is not None and self.end.bias is not None
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def composed(self, upsample: Upsample, *, keep: bool, out: list[Tensor] | None = None) -> Weights:
        """Return the weights, those of the conditioning composed with `upsample`: kept, or made, in `out` if given."""

        def compose(out: list[Tensor] | None = None) -> Weights:
            weights = self.weights()
            cond_weights, cond_biases = upsample.compose(weights.cond_weights, weights.cond_biases, out)
            return weights._replace(cond_weights=cond_weights, cond_biases=cond_biases)

        return self._composed.get([*self._stored(), *upsample.stored()], compose) if keep else compose(out)

    def forget_composed(self) -> None:
        """Free what `composed` has kept."""
        self._composed.clear()

    def forward(
        self,
        h: Tensor,
        cond: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Weights | None = None,
        *,
        end: bool = True,
    ) -> Tensor:
        """Return shift and log scale [B, 2 * n_in_channels, T] for the kept half `h` [B, n_in_channels, T].

        Without `end`, return what the convolution of that name takes: [B, n_channels, T]. The other arguments are those
        of `WN.forward`.
        """
        # the stack's kernels for GPUs want the channels of a step beside each other in memory
        h = self.start.channels_last(h) if h.device.type == "cuda" else self.start(h)
        hidden = super().forward(h, cond, mask, weights)
        if not end:
            return hidden
        out: Tensor = self.end(hidden)
        return out


class WaveGlow(Vocoder):
    """The published WaveGlow, under its published state-dict keys.

    Args:
        n_mel_channels: mel bands of the conditioning (published: 80).
        n_flows: steps of flow, each a 1x1 convolution and a coupling (12).
        n_group: samples folded into one step of time (8), even.
        n_early_every: after every so many flows, `n_early_size` channels leave the flow early (4).
        n_early_size: channels that leave at once (2).
        WN_config: sizes of the coupling networks: `n_layers` (8), `n_channels` (256), `kernel_size` (3).
        hop_length: audio samples per mel frame, the upsampler's stride.
        win_length: the upsampler's kernel in samples.
        conditioning: "sample", the published form: the mel is upsampled to one column per sample, then folded to
            n_mel_channels * n_group channels. "group": it is upsampled to one column of n_mel_channels per group, for
            small models.
        alternate_halves: odd flows transform the first half of the channels, as in the 2018 `glow_old.py`.
        backprop: "autograd", "recompute" or "invert": what a training step keeps in memory; see
            `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: sizes that do not fit each other; the message names them.
    """

    usual_sigma = 0.6
    composition = "auto"  # set by `compose_conditioning`

    def __init__(
        self,
        n_mel_channels: int,
        n_flows: int,
        n_group: int,
        n_early_every: int,
        n_early_size: int,
        WN_config: Mapping[str, int],
        *,
        hop_length: int = 256,
        win_length: int = 1024,
        conditioning: str = "sample",
        alternate_halves: bool = False,
        backprop: str = "autograd",
    ) -> None:
        super().__init__()
        self.backprop = backprop
        self._check_config(n_mel_channels, n_flows, n_group, n_early_every, n_early_size, WN_config)
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"`conditioning` must be one of {', '.join(CONDITIONINGS)}; got {conditioning!r}")
        if hop_length < 1 or hop_length % n_group:
            raise ValueError(f"`hop_length` must be a positive multiple of n_group = {n_group}; got {hop_length}")
        if win_length < hop_length or win_length % n_group:
            raise ValueError(
                f"`win_length` must be at least hop_length = {hop_length} and a multiple of n_group = {n_group}; "
                f"got {win_length}"
            )
        self.config: dict[str, Any] = {
            "n_mel_channels": n_mel_channels,
            "n_flows": n_flows,
            "n_group": n_group,
            "n_early_every": n_early_every,
            "n_early_size": n_early_size,
            "WN_config": dict(WN_config),
            "hop_length": hop_length,
            "win_length": win_length,
            "conditioning": conditioning,
            "alternate_halves": alternate_halves,
        }
        self.n_mel_channels, self.n_flows, self.n_group = n_mel_channels, n_flows, n_group
        self.n_early_every, self.n_early_size = n_early_every, n_early_size
        self.hop_length, self.win_length = hop_length, win_length
        self.conditioning, self.alternate_halves = conditioning, alternate_halves

        per_step = n_group if conditioning == "group" else 1
        group = n_group // per_step
        cond_channels = n_mel_channels * group
        self.upsample = Upsample(n_mel_channels, win_length // per_step, hop_length // per_step, group)
        self._add_flows(lambda half: CouplingNet(half, cond_channels, **WN_config))

    def _add_flows(self, network: Callable[[int], nn.Module]) -> None:
        """Make the flows, with a `network` for the half of the channels that each works on."""
        self.WN = nn.ModuleList()
        self.convinv = nn.ModuleList()
        channels = self.n_group
        for k in range(self.n_flows):
            if self._is_early(k):
                channels -= self.n_early_size
            self.convinv.append(InvertibleConv1x1(channels))
            self.WN.append(network(channels // 2))
        self.n_remaining_channels = channels

    @staticmethod
    def _check_config(
        n_mel_channels: int,
        n_flows: int,
        n_group: int,
        n_early_every: int,
        n_early_size: int,
        WN_config: Mapping[str, int],
        group: str = "n_group",
    ) -> None:
        sizes = {
            "n_mel_channels": n_mel_channels,
            "n_flows": n_flows,
            group: n_group,
            "n_early_every": n_early_every,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}")
        for name, size in ((group, n_group), ("n_early_size", n_early_size)):
            if size < 0 or size % 2:
                raise ValueError(f"`{name}` must be even, since channels are halved; got {size}")
        remaining = n_group - n_early_size * ((n_flows - 1) // n_early_every)
        if remaining < 2:
            raise ValueError(
                f"`{group}` must leave at least 2 channels after the early outputs; got {remaining} of {n_group} "
                f"with n_flows {n_flows}, n_early_every {n_early_every}, n_early_size {n_early_size}"
            )
        expected = {"n_layers", "n_channels", "kernel_size"}
        if set(WN_config) != expected:
            raise ValueError(f"`WN_config` must have the keys {sorted(expected)}; got {sorted(WN_config)}")

    def _is_early(self, k: int) -> bool:
        """Whether channels leave (forward) or join (inference) before flow k."""
        return k > 0 and k % self.n_early_every == 0

    def _kept(self, k: int, x: Tensor) -> Tensor:
        """Return the half that flow k's coupling leaves as it is, and sees."""
        return x.chunk(2, 1)[1 if self._transforms_first(k) else 0]

    def _transforms_first(self, k: int) -> bool:
        return self.alternate_halves and k % 2 == 1

    def _couple(
        self, k: int, x: Tensor, hidden: Tensor, weight: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Run flow k's coupling on x, given what its network made; then what `flow_step` does between two couplings."""
        net = cast(CouplingNet, self.WN[k])
        options["transform_first"] = self._transforms_first(k)
        return flow_step(x, hidden, net.end.folded_weight(), net.end.bias, weight, **options)

    def compose_conditioning(self, when: str) -> None:
        """Choose when `infer` composes the weights of the conditioning with the upsampler.

        Both are linear. Composed, a step is conditioned by the frames it depends on, n_mel_channels * win_length /
        hop_length values instead of n_mel_channels * n_group (320 and 640 as published), through one weight for each of
        the hop_length / n_group steps of a frame. The audio is the same but for rounding. It is done where the kernels
        take such weights, and neither under autocast nor by torch.compile; training does without.

        Args:
            when: "auto", as it is at first: on a CPU, in a call, one flow after the other, where it saves more
                multiplications than it takes. As published, that is beyond 640 frames times batch, 7.4 seconds of
                audio. It takes the memory of one flow's composed weights, for 8 layers of 256 channels 168 MB in
                float32. On a GPU, where writing the weights would cost what they save, never.
                "kept": once, for all calls until a parameter changes: 2.0 GB for WaveGlow-256 in float32, half of that
                in bfloat16. The first such call takes seconds longer; with parameters made in inference mode, whose
                changes leave no trace, every call is a first one. "off": never. Short mels are left out in any case,
                on a CPU of fewer than 32 frames, on a GPU of fewer than 384: kernels work on many frames at a time.

        Raises:
            ValueError: `when` is none of these, or "kept" where composing saves nothing.
        """
        if when not in COMPOSITIONS:
            raise ValueError(f"`when` must be one of {', '.join(COMPOSITIONS)}; got {when!r}")
        if when == "kept" and self._inputs_saved() <= 0:
            raise ValueError("`when` must be 'auto' or 'off' for a model where composing saves nothing; got 'kept'")
        self.composition = when
        if when != "kept":
            for net in self.WN:
                if isinstance(net, CouplingNet):
                    net.forget_composed()

    def _inputs_saved(self) -> int:
        """Return how many values fewer a step is conditioned by, where the upsampler is composed with the weights."""
        return self.upsample.rows - self.upsample.in_channels * self.upsample.frames

    def _composes(self, mel: Tensor) -> bool:
        """Whether a synthesis from `mel` [B, n_mel_channels, F] is to use composed weights."""
        saved = self._inputs_saved()
        if self.composition == "off" or saved <= 0 or mel.shape[2] < SHORTEST_COMPOSED.get(mel.device.type, math.inf):
            return False
        if torch.compiler.is_compiling() or checks.autocast_is_on(mel.device) or not registry.kernels_take_phases(mel):
            return False
        if self.composition == "kept":
            return True
        # multiplications, for each row of each weight
        pays = mel.shape[0] * mel.shape[2] * saved > self.upsample.rows * (self.upsample.rows - saved)
        return pays and mel.device.type == "cpu"

    def _convinv(self, k: int) -> InvertibleConv1x1:
        return cast(InvertibleConv1x1, self.convinv[k])

    def networks(self) -> list[nn.Module]:
        return list(self.WN)

    def _conditioning(self, mel: Tensor, steps: int) -> Tensor:
        """Return what the coupling networks are conditioned on, [B, C_c, steps], laid out for their kernels."""
        return self.upsample.grouped(mel, steps, channels_last=mel.device.type == "cuda")

    def _check_mel(self, mel: Tensor) -> None:
        check_mel("mel", mel, self.n_mel_channels, self._convinv(0).conv.weight)

    def _check_audio(self, mel: Tensor, audio: Tensor) -> None:
        covered = (mel.shape[2] - 1) * self.hop_length + self.win_length if mel.shape[2] else 0
        if audio.shape[1] % self.n_group or audio.shape[1] > covered:
            raise ValueError(
                f"`audio` must have a multiple of n_group = {self.n_group} samples and at most the {covered} that "
                f"`mel` {list(mel.shape)} covers; got {list(audio.shape)}"
            )

    def forward(self, forward_input: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The training direction: audio to noise.

        Args:
            forward_input: mel [B, n_mel_channels, F] and audio [B, T], where T is a multiple of `n_group` that the
                upsampled mel covers: T <= (F - 1) * hop_length + win_length.

        Returns:
            z [B, n_group, T / n_group], channels in the order in which they left the flow; and for each flow the sum
            of its log scales [B] and the log-determinant of its 1x1 convolution, over batch and time as published.

        Raises:
            ValueError: a shape, dtype or device does not fit.
        """
        mel, audio = forward_input
        self._check_mel(mel)
        checks.check_shape("audio", audio, "[B, T]", (mel.shape[0], None))
        checks.check_like("audio", audio, "mel", mel)
        self._check_audio(mel, audio)
        steps = audio.shape[1] // self.n_group
        cond = self._conditioning(mel, steps)
        x = audio.reshape(audio.shape[0], steps, self.n_group).transpose(1, 2)
        x, log_det = self.convinv[0](x)
        log_det_w_list = [log_det.sum()]
        for k in range(1, self.n_flows):
            weight = self._convinv(k).conv.weight[:, :, 0]
            log_det_w_list.append((log_abs_det(weight) * steps).expand(x.shape[0]).sum())
        parts, log_s_list = self.run_steps([_WaveGlowStep(self, k) for k in range(self.n_flows)], x, [cond])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0], log_s_list, log_det_w_list

    @torch.no_grad()
    def infer(
        self,
        mel: Tensor,
        sigma: float = 1.0,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Synthesise audio.

        Args:
            mel: [B, n_mel_channels, F], natural-log mel magnitudes.
            sigma: standard deviation of the noise, >= 0; the published demo uses 0.6.
            z: the noise to use, [B, n_group, F * hop_length / n_group], of unit variance (it is multiplied by `sigma`),
                channels in the published order of drawing: the channels that remain to the last flow first, then each
                early output's. None draws it, in this order.
            generator: source of the draws; None for PyTorch's default. Not together with `z`.

        Returns:
            audio [B, F * hop_length].

        Raises:
            ValueError: a shape, dtype or device does not fit, `mel` is not finite (says how many values and where the
                first is), `sigma` is negative, or a 1x1 weight is singular.
        """
        self._check_mel(mel)
        check_synthesis(mel, sigma)
        steps = mel.shape[2] * self.hop_length // self.n_group
        return self._synthesised(mel, self._scaled(self._noise(mel, steps, z, generator), sigma))

    def _scaled(self, noise: Tensor, sigma: float) -> Tensor:
        """Return unit noise in the order of drawing, times `sigma`."""
        return noise * sigma

    def _synthesised(self, mel: Tensor, noise: Tensor) -> Tensor:
        """Return audio [B, F * hop_length] for `mel` and scaled noise [B, n_group, steps] in the order of drawing."""
        composes, weights = self._composes(mel), None
        if composes:
            cond = self.upsample.windows(mel, channels_last=mel.device.type == "cuda")
        else:
            cond = self._conditioning(mel, noise.shape[2])
        (wide,) = checks.autocast_wide(mel.device, noise)
        assert wide is not None
        x, *entering = torch.split(wide, self._noise_widths(), 1)
        for k in reversed(range(self.n_flows)):
            weight = self._convinv(k).inverse(x.dtype, name=f"convinv.{k}.conv.weight")
            early = entering.pop(0) if self._is_early(k) else None
            net = cast(CouplingNet, self.WN[k])
            if composes:
                # one flow's weights at a time, in the memory of those of the flow before
                weights = net.composed(
                    self.upsample, keep=self.composition == "kept", out=weights and weights.cond_weights
                )
            kept = self._kept(k, x)
            hidden = net(kept, cond, end=False) if weights is None else net(kept, cond, None, weights, end=False)
            x, _ = self._couple(k, x, hidden, weight, early=early, reverse=True, log_det=False)
        return x.transpose(1, 2).flatten(1)

    def _noise_widths(self) -> list[int]:
        """Return how many channels of noise enter at a time: the remaining ones, then each early output's."""
        return [self.n_remaining_channels] + [self.n_early_size] * sum(map(self._is_early, range(self.n_flows)))

    def _noise(self, mel: Tensor, steps: int, z: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return unit noise [B, n_group, steps], `z` or drawn."""
        layout = "[B, n_group, F * hop_length / n_group]"
        return unit_noise(z, generator, mel, layout, self._noise_widths(), steps)

    def remove_weightnorm(self, model: WaveGlow | None = None) -> WaveGlow:
        """Replace weight norm by the plain weights it stands for, in place; return the model.

        The published code calls `WaveGlow.remove_weightnorm(model)`; `model.remove_weightnorm()` does the same.
        Inference does not need it: folded weights are kept between calls anyway.
        """
        target = self if model is None else model
        remove_weight_norm(target)
        return target


class _WaveGlowStep(Step):
    """Flow k's coupling, then the 1x1 convolution of the next flow, if there is one."""

    def __init__(self, model: WaveGlow, k: int) -> None:
        self.model, self.k = model, k
        self.name = f"flow {k} of {model.n_flows}"
        self.next = model._convinv(k + 1) if k + 1 < model.n_flows else None
        self.parts = [model.WN[k], *([] if self.next is None else [self.next])]
        self.leaving = model.n_early_size if self.next is not None and model._is_early(k + 1) else 0

    def kept(self, z: Tensor) -> Tensor:
        return self.model._kept(self.k, z)

    def network(self, kept: Tensor, *conds: Tensor) -> Tensor:
        hidden: Tensor = self.model.WN[self.k](kept, *conds, end=False)
        return hidden

    def leave(self, z: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        weight = None if self.next is None else self.next.conv.weight[:, :, 0]
        return self.model._couple(self.k, z, hidden, weight, n_early=self.leaving)

    def _before_convinv(self, y: Tensor) -> Tensor:
        if self.next is None:
            return y
        multiplied = self.next.infer(y[:, self.leaving :], name=f"convinv.{self.k + 1}.conv.weight")
        return torch.cat((y[:, : self.leaving], multiplied), 1)

    def kept_of(self, y: Tensor) -> Tensor:
        return self.kept(self._before_convinv(y))

    def inverse(self, y: Tensor, hidden: Tensor) -> Tensor:
        return self.model._couple(self.k, self._before_convinv(y), hidden, None, reverse=True, log_det=False)[0]


class WaveGlowLoss(nn.Module):
    """Negative log-likelihood per sample, up to a constant: (sum z^2 / (2 sigma^2) - sum log s - sum log |W|) / count.

    Prenger et al. 2018, eq. 4 (negated) and the published `WaveGlowLoss`.

    Args:
        sigma: assumed standard deviation of z.

    Raises:
        ValueError: `sigma` is not positive.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive; got {sigma}")
        self.sigma = sigma

    def forward(self, model_output: tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]) -> Tensor:
        """Return the scalar loss of what `WaveGlow.forward` returned."""
        z, log_s_list, log_det_w_list = model_output
        # in float32 or wider: the sums run over all samples of the batch
        wide = z if z.dtype == torch.float64 else z.float()
        log_s = torch.stack([s.sum() for s in log_s_list]).sum()
        log_det_w = torch.stack(list(log_det_w_list)).sum()
        loss: Tensor = wide.square().sum() / (2 * self.sigma * self.sigma) - log_s - log_det_w
        return loss / z.numel()
