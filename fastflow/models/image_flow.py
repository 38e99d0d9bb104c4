"""What the models of images have in common: scales, likelihood, samples, bits per dimension, files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastflow.files import write_whole
from fastflow.nn import (
    AffineCoupling,
    CheckerboardCoupling,
    FlowSequential,
    InvertibleConv1x1,
    Squeeze2d,
    ZeroConv2d,
)
from fastflow.nn.backprop import FlowModel, Step
from fastflow.nn.shapes import exchange_halves, zero_log_det
from fastflow.ops import checks

Model = TypeVar("Model", bound="ImageFlow")

_LOG_2PI = math.log(2 * math.pi)
_FORMAT = "1"  # of files; as `fastflow.checkpoints` writes them


class SplitPrior(nn.Module):
    """The learned prior of the half of the channels that leaves a scale: N(mean, exp(log_sd)^2) given the other half.

    As a flow it brings that half to unit variance, (x - mean) * exp(-log_sd): a coupling, run backwards. Mean and
    log_sd come from a `ZeroConv2d` of the half that stays, as in openai/glow's `split2d_prior`.

    Args:
        channels: of both halves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coupling = AffineCoupling(ZeroConv2d(channels // 2, channels), form="exp")

    def forward(self, x: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return y [B, C, H, W], its first half that of `x`, and the log-determinant [B]."""
        y, log_det = self.coupling(x, reverse=not reverse)
        return y, log_det


class ImageFlow(FlowModel):
    """A normalizing flow over images, in scales as in RealNVP and Glow.

    After the flows of each level but the last, the second half of the channels leaves. Whatever leaves is standard
    normal under the model: a learned prior is one more flow.

    `backprop` says what a training step keeps in memory. All of the model is a part of its chain: squeezes, actnorm and
    its start from the first batch, 1x1 convolutions, couplings, learned priors. What comes before, `dequantize`, draws
    noise that no gradient flows to.

    Args:
        in_channels: C of the images.
        levels: the flows of each level, called as `flow(x, reverse=...)`, in the direction from images to noise.
        config: keyword arguments that make the same model again.
        backprop: "autograd", "recompute" or "invert"; see `fastflow.nn.backprop.FlowModel`.

    Raises:
        ValueError: `backprop` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[FlowSequential],
        config: dict[str, Any],
        *,
        backprop: str = "autograd",
    ) -> None:
        super().__init__()
        self.backprop = backprop
        self.in_channels = in_channels
        self._squeezes = [sum(isinstance(flow, Squeeze2d) for flow in level) for level in levels]
        self.levels = nn.ModuleList(levels)
        self.config = config

    def z_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return [C, H, W] of the noise of each level, for images of `height` x `width` pixels.

        Raises:
            ValueError: the sizes are no multiples of 2 to the number of squeezes.
        """
        multiple = 2 ** sum(self._squeezes)
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % multiple:
                raise ValueError(f"`{name}` must be a multiple of {multiple}, halved at each squeeze; got {size}")
        shapes = []
        channels = self.in_channels
        for i, count in enumerate(self._squeezes):
            channels, height, width = channels * 4**count, height // 2**count, width // 2**count
            if i + 1 < len(self._squeezes):
                channels //= 2
            shapes.append((channels, height, width))
        return shapes

    def _a_parameter(self) -> Tensor:
        return next(self.parameters())

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """From images to noise.

        Args:
            x: [B, in_channels, H, W]; see `dequantize`.

        Returns:
            The noise of each level, [B, *shape] with the shapes of `z_shapes`, and the log-likelihood of each image in
            nats [B], float32 or wider: the log-density of the noise plus the log-determinant.

        Raises:
            TypeError, ValueError: a size, dtype or device does not fit.
        """
        checks.check_floating("x", x)
        checks.check_shape("x", x, "[B, C, H, W]", (None, self.in_channels, None, None))
        checks.check_like("x", x, "model.parameters()", self._a_parameter())
        shapes = self.z_shapes(*x.shape[2:])  # refuses what the squeezes cannot halve
        zs, log_dets = self.run_steps(self._steps([channels for channels, _, _ in shapes[:-1]]), x, [])
        return zs, torch.stack([*log_dets, *map(_log_normal, zs)]).sum(0)

    def _steps(self, leaving: Sequence[int]) -> list[Step]:
        """Return the flows as a chain of steps, given how many channels leave after each level but the last."""
        steps: list[Step] = []
        for i, level in enumerate(self.levels):
            modules: list[nn.Module] = []  # of the next step
            own: list[Step] = []
            for k, flow in enumerate(cast(FlowSequential, level)):
                for module in _modules_of(flow):
                    modules.append(module)
                    if isinstance(module, (AffineCoupling, CheckerboardCoupling, SplitPrior)):
                        own.append(_ImageStep(f"flow {k} of level {i}", modules))
                        modules = []
            if modules or not own:
                own.append(_ImageStep(f"the end of level {i}", modules))
            if i < len(leaving):
                own[-1].leaving = leaving[i]
            steps += own
        return steps

    def inverse(self, zs: Sequence[Tensor]) -> Tensor:
        """From noise to images: the inverse of `forward`.

        Args:
            zs: the noise of each level, as `forward` returns it.

        Returns:
            x [B, in_channels, H, W].

        Raises:
            TypeError, ValueError: a number, size, dtype or device does not fit, or a 1x1 weight is singular.
            RuntimeError: actnorm has seen no data yet.
        """
        if len(zs) != len(self.levels):
            raise ValueError(f"`zs` must have {len(self.levels)} tensors, one per level; got {len(zs)}")
        self._check_noise(zs)
        x = zs[-1]
        for i in reversed(range(len(self.levels))):
            if i + 1 < len(self.levels):
                x = torch.cat((x, zs[i]), 1)
            x, _ = self.levels[i](x, reverse=True)
        return x

    def _check_noise(self, zs: Sequence[Tensor]) -> None:
        checks.check_shape("zs[-1]", zs[-1], "[B, C, H, W]", (None, None, None, None))
        height, width = (size * 2 ** sum(self._squeezes) for size in zs[-1].shape[2:])
        for i, (z, shape) in enumerate(zip(zs, self.z_shapes(height, width), strict=True)):
            checks.check_floating(f"zs[{i}]", z)
            checks.check_shape(f"zs[{i}]", z, "[B, C, H, W]", (zs[-1].shape[0], *shape))
            checks.check_like(f"zs[{i}]", z, "model.parameters()", self._a_parameter())

    @torch.no_grad()
    def sample(
        self,
        count: int,
        height: int,
        width: int,
        temperature: float = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images.

        Args:
            count: B.
            height, width: of the images, in pixels; multiples of 2 to the number of squeezes.
            temperature: standard deviation of the noise, >= 0; Kingma & Dhariwal use 0.7.
            generator: source of the draws; None for PyTorch's default.

        Returns:
            x [B, in_channels, height, width]; `quantize` makes pixels of it.

        Raises:
            ValueError: a size or the temperature does not fit, or a 1x1 weight is singular.
            RuntimeError: actnorm has seen no data yet.
        """
        check_sizes(count=count)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`temperature` must be a finite number >= 0; got {temperature}")
        like = self._a_parameter()
        zs = [
            temperature * torch.randn(count, *shape, generator=generator, dtype=like.dtype, device=like.device)
            for shape in self.z_shapes(height, width)
        ]
        return self.inverse(zs)

    def bits_per_dim(self, images: Tensor, n_bits: int = 8, *, generator: torch.Generator | None = None) -> Tensor:
        """Return how many bits per value each image costs under the model [B]: the loss to train with.

        An upper bound of the exact figure, by uniform dequantisation (Theis et al. 2016, section 3.1):
        n_bits - log p(x) / (C * H * W * log 2), with x from `dequantize`.

        Args:
            images: [B, in_channels, H, W], integers from 0 to 2**n_bits - 1.
            n_bits: bits of a value, 1 to 8.
            generator: source of the noise; None for PyTorch's default.

        Raises:
            TypeError, ValueError: a value, size, dtype or device does not fit, or the model is in half precision, which
                is coarser than the noise: `torch.autocast` narrows what can be.
        """
        dtype = self._a_parameter().dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`bits_per_dim` must be of a model in float32 or float64; got {dtype}")
        return self.bits_of_values(dequantize(images, n_bits, dtype=dtype, generator=generator), n_bits)

    def bits_of_values(self, x: Tensor, n_bits: int) -> Tensor:
        """Return `bits_per_dim` [B] of images that are dequantised already: x [B, in_channels, H, W].

        Raises:
            TypeError, ValueError: a size, dtype or device does not fit.
        """
        _, log_likelihood = self(x)
        bits: Tensor = n_bits - log_likelihood / (math.prod(x.shape[1:]) * math.log(2))
        return bits

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the weights as safetensors, with the configuration inside: whole or not at all.

        Raises:
            OSError: the file exists and `overwrite` is false, or it cannot be written.
        """
        from safetensors.torch import save

        metadata = {
            "format": "pt",
            "fastflow_format": _FORMAT,
            "model": type(self).__name__,
            "config": json.dumps(self.config),
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        with write_whole(Path(path), overwrite=overwrite, error=OSError) as temporary:
            temporary.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls: type[Model], path: str | os.PathLike[str]) -> Model:
        """Return the model that `save` wrote, on the CPU, in evaluation mode.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not one of this class, or its tensors do not fit its configuration.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"`path` must be a safetensors file; got {os.fspath(path)}: {error}") from None
        found = metadata.get("model"), metadata.get("fastflow_format")
        if found != (cls.__name__, _FORMAT):
            raise ValueError(
                f"`path` must hold a {cls.__name__} of format {_FORMAT}; got {found[0]} of format {found[1]} "
                f"in {os.fspath(path)}"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # the initial weights' draws are not the caller's
                model = cls(**json.loads(metadata["config"]))
            model.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`path` must hold tensors that fit their configuration; got {error}") from error
        return model.eval()


def _modules_of(flow: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a flow in their order; a `FlowSequential` has those of its own."""
    if isinstance(flow, FlowSequential):
        for part in flow:
            yield from _modules_of(part)
    else:
        yield flow


class _ImageStep(Step):
    """Flows without a network, then the one with a network, if there is one; then half of the channels may leave.

    Args:
        name: what an error calls the step.
        modules: in their order; the last is a coupling or a learned prior, or none of them is.
    """

    conds = ()

    def __init__(self, name: str, modules: Sequence[nn.Module]) -> None:
        self.name, self.parts = name, modules
        last = modules[-1] if modules else None
        self.backwards = isinstance(last, SplitPrior)  # a coupling's forward is this step's inverse
        last = last.coupling if isinstance(last, SplitPrior) else last
        self.coupling = last if isinstance(last, (AffineCoupling, CheckerboardCoupling)) else None
        self.plain = modules if self.coupling is None else modules[:-1]

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        total = None
        for flow in self.plain:
            x, log_det = flow(x)
            total = log_det if total is None else total + log_det
        return x, total

    def kept(self, z: Tensor) -> Tensor:
        return z[:, :0] if self.coupling is None else self.coupling.kept(z)

    def network(self, kept: Tensor, *conds: Tensor) -> Tensor:
        out: Tensor = kept if self.coupling is None else self.coupling.net(kept)
        return out

    def leave(self, z: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if self.coupling is None:
            y, log_det = z, zero_log_det(z)
        else:
            y, log_det = self.coupling.couple(z, hidden, reverse=self.backwards)
        return self._exchanged(y), log_det

    def _exchanged(self, y: Tensor) -> Tensor:
        """Return y, and where channels leave its second half first."""
        return exchange_halves(y) if self.leaving else y

    def kept_of(self, y: Tensor) -> Tensor:
        return self.kept(self._exchanged(y))

    def inverse(self, y: Tensor, hidden: Tensor) -> Tensor:
        x = self._exchanged(y)
        if self.coupling is not None:
            x, _ = self.coupling.couple(x, hidden, reverse=not self.backwards)
        for flow in reversed(self.plain):
            if isinstance(flow, InvertibleConv1x1):
                x = flow.infer(x, name=f"the 1x1 weight of {self.name}")
            else:
                x, _ = flow(x, reverse=True)
        return x


def dequantize(
    images: Tensor,
    n_bits: int = 8,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return `images`, integers from 0 to 2**n_bits - 1, as values from -0.5 to 0.5 with uniform noise in each step.

    Raises:
        TypeError: `images` holds no integers.
        ValueError: `n_bits` is not 1 to 8, or a value is out of range.
    """
    _check_bits(n_bits)
    if not isinstance(images, Tensor) or images.is_floating_point() or images.is_complex():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"`images` must be a tensor of integers; got {got}")
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < 2**n_bits:
        raise ValueError(
            f"`images` must have values from 0 to {2**n_bits - 1} (n_bits = {n_bits}); "
            f"got {int(images.min())} to {int(images.max())}"
        )
    noise = torch.rand(images.shape, generator=generator, dtype=dtype, device=images.device)
    return (images + noise) / (1 << n_bits) - 0.5


def quantize(x: Tensor, n_bits: int = 8) -> Tensor:
    """Return the integers that `dequantize` made `x` of, uint8; values beyond the range become its ends.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `n_bits` is not 1 to 8.
    """
    _check_bits(n_bits)
    checks.check_floating("x", x)
    return ((x + 0.5) * (1 << n_bits)).floor().clamp(0, (1 << n_bits) - 1).to(torch.uint8)


def _check_bits(n_bits: int) -> None:
    if not 1 <= n_bits <= 8:
        raise ValueError(f"`n_bits` must be 1 to 8; got {n_bits}")


def _log_normal(z: Tensor) -> Tensor:
    """Return the log-density of standard normal `z` [B, ...], [B]."""
    wide = z if z.dtype == torch.float64 else z.float()
    return -0.5 * (wide.square() + _LOG_2PI).flatten(1).sum(1)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless every size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1; got {size}")
