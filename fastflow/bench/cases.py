"""One registry of the sizes at which published models call the operations, with their arithmetic and their traffic.

FLOPs count a multiply and an add as two; elementwise operations count `OPS_*` per element. Bytes are the least that any
implementation moves: every input read once, every output written once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastflow.ops import registry

OPS_GATE = 10  # tanh, sigmoid, product
OPS_COUPLING = 4  # exp, product, sum, log-determinant


class Maker:
    """Makes tensors of one dtype: random ones, or on the device "meta" ones that have no values."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype or self.dtype, device="meta")
        values = torch.randn(shape, generator=self._generator) * scale  # drawn on the CPU: the same on every device
        return values.to(self.device, dtype or self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """A weight [C_out, ...] whose products keep the size of what they multiply."""
        return self.randn(*shape, scale=1 / math.sqrt(math.prod(shape[1:])))

    def mask(self, batch: int, steps: int) -> Tensor:
        """Ragged lengths: item b ends b * 3 steps early."""
        if self.device.type == "meta":
            return torch.empty(batch, 1, steps, dtype=self.dtype, device="meta")
        lengths = torch.tensor([max(1, steps - 3 * b) for b in range(batch)])
        return (torch.arange(steps) < lengths[:, None])[:, None].to(self.device, self.dtype)


@dataclass(frozen=True)
class Case:
    """One operation at one published size.

    Attributes:
        name: says model and size; unique together with `op`.
        op: a name of `registry.SCHEMAS` or `registry.BACKWARD_SCHEMAS`.
        make: makes the operation's arguments, in its schema's order.
        flops: arithmetic of one call.
        elements: values that one call reads and writes at least, each of the dtype's size.
        matrix: whether the arithmetic is matrix products.
        main: one of the few sizes at which everything is checked in every dtype.
    """

    name: str
    op: str
    make: Callable[[Maker], tuple[Any, ...]]
    flops: float
    elements: float
    matrix: bool = True
    main: bool = False

    def arguments(self, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> tuple[Any, ...]:
        return self.make(Maker(dtype, device, seed))

    def bytes(self, dtype: torch.dtype) -> float:
        return self.elements * dtype.itemsize


@dataclass(frozen=True)
class Block:
    """A gated stack as a published model has it; sizes are in `fastflow.ops.wn`'s terms."""

    model: str
    channels: int
    kernel: int
    layers: int
    dilations: tuple[int, ...]
    cond_channels: int = 0
    cond: str = "local"
    gate: int = 0
    skip: int = 0
    input_bias: bool = False
    mask: bool = False
    res_scale: float = 1.0
    last_residual: bool = False

    @property
    def G(self) -> int:
        return self.gate or self.channels

    @property
    def S(self) -> int:
        return self.skip or self.channels

    def rows(self, layer: int) -> int:
        """Rows of the res/skip product in this layer."""
        residual = self.last_residual or layer < self.layers - 1
        return self.S + (self.channels if residual else 0)

    def cond_shape(self, batch: int, steps: int) -> tuple[int, int, int] | None:
        if not self.cond_channels:
            return None
        return batch, self.cond_channels, 1 if self.cond == "global" else steps

    # arithmetic of one layer

    def gate_flops(self, batch: int, steps: int) -> float:
        """The dilated convolution and the conditioning."""
        local = self.cond_channels if self.cond == "local" else 0
        flops = 2.0 * batch * steps * 2 * self.G * (self.kernel * self.channels + local)
        return flops + (2.0 * batch * 2 * self.G * self.cond_channels if self.cond == "global" else 0)

    def res_skip_flops(self, batch: int, steps: int, layer: int) -> float:
        return 2.0 * batch * steps * self.G * self.rows(layer)

    def layer_flops(self, batch: int, steps: int, layer: int) -> float:
        return self.gate_flops(batch, steps) + self.res_skip_flops(batch, steps, layer)

    def layer_backward_flops(self, batch: int, steps: int, layer: int) -> float:
        """The gate's inputs computed again, then two products for each product of the forward."""
        return 3 * self.gate_flops(batch, steps) + 2 * self.res_skip_flops(batch, steps, layer)

    # values

    def weights(self, layer: int) -> float:
        conv = 2 * self.G * (self.kernel * self.channels + 1)
        cond = 2 * self.G * (self.cond_channels + 1) if self.cond_channels else 0
        return conv + cond + self.rows(layer) * (self.G + 1)

    def cond_elements(self, batch: int, steps: int) -> float:
        shape = self.cond_shape(batch, steps)
        return math.prod(shape) if shape else 0

    # of all layers

    def flops(self, batch: int, steps: int) -> float:
        return sum(self.layer_flops(batch, steps, i) for i in range(self.layers))

    def elements(self, batch: int, steps: int) -> float:
        """Values that the stack reads and writes at least: inputs and weights once, outputs once."""
        columns = batch * steps
        moved = columns * (self.channels + self.S) + self.cond_elements(batch, steps)
        return moved + sum(map(self.weights, range(self.layers)))

    # arguments

    def layer_arguments(self, m: Maker, batch: int, steps: int, layer: int) -> tuple[Any, ...]:
        cond = self.cond_shape(batch, steps)
        return (
            m.randn(batch, self.channels, steps),
            m.weight(2 * self.G, self.channels, self.kernel),
            m.randn(2 * self.G, scale=0.1),
            m.weight(self.rows(layer), self.G),
            m.randn(self.rows(layer), scale=0.1),
            m.randn(*cond) if cond else None,
            m.weight(2 * self.G, self.cond_channels) if cond else None,
            m.randn(2 * self.G, scale=0.1) if cond else None,
            m.randn(batch, self.channels) if self.input_bias else None,
            m.mask(batch, steps) if self.mask else None,
            self.dilations[layer % len(self.dilations)],
            False,
            self.res_scale,
            self.rows(layer) > self.S,
        )

    def arguments(self, m: Maker, batch: int, steps: int) -> tuple[Any, ...]:
        layers = [self.layer_arguments(m, 1, 1, i) for i in range(self.layers)]  # for the weights
        cond = self.cond_shape(batch, steps)

        def all_of(column: int) -> list[Tensor]:
            return [layer[column] for layer in layers if layer[column] is not None]

        return (
            m.randn(batch, self.channels, steps),
            all_of(1),
            all_of(2),
            all_of(3),
            all_of(4),
            m.randn(*cond) if cond else None,
            all_of(6),
            all_of(7),
            [m.randn(batch, self.channels) for _ in layers] if self.input_bias else [],
            m.mask(batch, steps) if self.mask else None,
            [self.dilations[i % len(self.dilations)] for i in range(self.layers)],
            False,
            self.res_scale,
            1.0,
            self.last_residual,
        )


WAVEGLOW_DILATIONS = tuple(2**i for i in range(8))
TEN = tuple(2**i for i in range(10))
HALF = math.sqrt(0.5)

# NVIDIA/waveglow config.json (256), DeepLearningExamples (512); ksw0306/FloWaveNet defaults: the channels of the
# conditioning double with each squeeze, blocks 0, 3 and 7 are here; jaywalnut310/vits and glow-tts configs;
# kan-bayashi/ParallelWaveGAN v1; lmnt-com/diffwave.
WAVEGLOW_256 = Block("WaveGlow-256", 256, 3, 8, WAVEGLOW_DILATIONS, 640)
WAVEGLOW_512 = Block("WaveGlow-512", 512, 3, 8, WAVEGLOW_DILATIONS, 640)
FLOWAVENET = tuple(
    Block(f"FloWaveNet block {i}", 256, 3, 2, (1, 2), 80 << i, res_scale=HALF, last_residual=True) for i in (0, 3, 7)
)
VITS = Block("VITS", 192, 5, 4, (1,), 256, "global", mask=True)
GLOW_TTS = Block("Glow-TTS", 192, 5, 4, (1,), mask=True)
PARALLEL_WAVEGAN = Block("Parallel WaveGAN", 64, 3, 30, TEN, 80, res_scale=HALF, last_residual=True)
DIFFWAVE = Block("DiffWave", 64, 3, 30, TEN, 80, input_bias=True, res_scale=HALF, last_residual=True)

BLOCKS = (WAVEGLOW_256, WAVEGLOW_512, *FLOWAVENET, VITS, GLOW_TTS, PARALLEL_WAVEGAN, DIFFWAVE)


TOY = Block("toy", 8, 3, 2, (1, 2), 5, mask=True)
"""Of no model: for tests."""

FRAMES = {0.5: 43, 1: 86, 10: 861, 30: 2584}  # mel frames of 256 samples at 22,050 Hz in so many seconds


def _spelled(block: Block, seconds: float, batch: int) -> str:
    return f"{block.model}, {seconds:g} s, batch {batch}"


def steps_of(model: str, seconds: float) -> int:
    """Steps of time that a model's stack sees for audio of this length."""
    if model == TOY.model:
        return 33
    frames = FRAMES[seconds]
    if model.startswith("WaveGlow"):
        return frames * 256 // 8
    if model.startswith("FloWaveNet"):
        return frames * 256 >> int(model.split()[-1]) + 1
    if model == "VITS":
        return frames
    if model == "Glow-TTS":
        return frames // 2
    return frames * 256


def _needs() -> list[bool]:
    return [True] * 9


def block_cases(block: Block, seconds: float, batch: int, *, ops: tuple[str, ...], main: bool) -> list[Case]:
    steps = steps_of(block.model, seconds)
    name = _spelled(block, seconds, batch)
    columns = batch * steps
    io = columns * block.channels + block.cond_elements(batch, steps)
    layer, layers = 0, range(block.layers)
    cases = {
        "wn_layer": Case(
            name,
            "wn_layer",
            lambda m: block.layer_arguments(m, batch, steps, layer),
            block.layer_flops(batch, steps, layer),
            io + columns * block.rows(layer) + block.weights(layer),
            main=main,
        ),
        "wn_layer_backward": Case(
            name,
            "wn_layer_backward",
            lambda m: (
                m.randn(batch, block.channels, steps),
                m.randn(batch, block.S, steps),
                *block.layer_arguments(m, batch, steps, layer),
                _needs(),
            ),
            block.layer_backward_flops(batch, steps, layer),
            2 * io + columns * block.rows(layer) + 2 * block.weights(layer),
            main=main,
        ),
        "wn": Case(
            name,
            "wn",
            lambda m: block.arguments(m, batch, steps),
            block.flops(batch, steps),
            block.elements(batch, steps),
            main=main,
        ),
        "wn_backward": Case(
            name,
            "wn_backward",
            lambda m: (m.randn(batch, block.S, steps), *block.arguments(m, batch, steps), _needs()),
            sum(block.layer_backward_flops(batch, steps, i) for i in layers)
            + sum(2.0 * columns * block.G * block.channels for i in layers if i < block.layers - 1),
            2 * io + columns * block.S + 2 * sum(map(block.weights, layers)),
            main=main,
        ),
    }
    return [cases[op] for op in ops]


def _invertible(m: Maker, channels: int) -> Tensor:
    """A scaled rotation: the log-determinant of a rotation itself is zero, and no error could be relative to it."""
    if m.device.type == "meta":
        return m.randn(channels, channels)
    rotation: Tensor = torch.linalg.qr(m.randn(channels, channels, dtype=torch.float32)).Q
    return (1.1 * rotation).to(m.dtype).contiguous()


def small_cases(
    model: str, channels: int, seconds: float, *, form: str | None, mask: bool, invconv: bool, actnorm: bool, main: bool
) -> list[Case]:
    """Coupling, 1x1 convolution and actnorm of a flow over `channels` channels, batch 1."""
    steps = steps_of(model, seconds)
    name = f"{model}, {channels} channels, {seconds:g} s"
    size, half = channels * steps, channels // 2 * steps
    cases = []
    if form is not None:
        additive = form == "additive"

        def coupling(m: Maker, reverse: bool) -> tuple[Any, ...]:
            half = channels // 2  # views, as models pass them
            out = m.randn(1, half if additive else channels, steps, scale=0.3)
            return (
                m.randn(1, channels, steps)[:, half:],
                out[:, :half],
                None if additive else out[:, half:],
                m.mask(1, steps) if mask else None,
                form,
                reverse,
            )

        reads = 2 if additive else 3
        for reverse in (False, True):
            label = f"{name}, {'reverse' if reverse else 'forward'}"
            cases.append(
                Case(
                    label,
                    "affine_coupling",
                    functools.partial(coupling, reverse=reverse),
                    OPS_COUPLING * half,
                    (reads + 1) * half,
                    matrix=False,
                    main=main,
                )
            )
        cases.append(
            Case(
                f"{name}, forward",
                "affine_coupling_backward",
                lambda m: (m.randn(1, channels // 2, steps), m.randn(1, dtype=torch.float32), *coupling(m, False)),
                2 * OPS_COUPLING * half,
                (reads + 1 + reads) * half,
                matrix=False,
                main=main,
            )
        )
    if invconv:

        def product(m: Maker) -> tuple[Any, ...]:
            return m.randn(1, channels, steps), _invertible(m, channels), m.mask(1, steps) if mask else None, True

        flops = 2.0 * channels * size
        weight = channels * channels
        cases += [
            Case(name, "invconv1x1", product, flops, 2 * size + weight, matrix=channels > 32, main=main),
            Case(
                name,
                "invconv1x1_backward",
                lambda m: (m.randn(1, channels, steps), m.randn(1, dtype=torch.float32), *product(m)),
                2 * flops,
                3 * size + 2 * weight,
                matrix=channels > 32,
                main=main,
            ),
        ]
    if actnorm:

        def norm(m: Maker, reverse: bool = False) -> tuple[Any, ...]:
            x = m.randn(1, channels, steps)
            scale = m.randn(channels, scale=0.1) if m.device.type == "meta" else 1.1 + m.randn(channels, scale=0.1)
            return x, m.randn(channels), scale, m.mask(1, steps) if mask else None, reverse

        cases += [
            Case(f"{name}, forward", "actnorm", norm, 2.0 * size, 2 * size, matrix=False, main=main),
            Case(f"{name}, reverse", "actnorm", lambda m: norm(m, True), 2.0 * size, 2 * size, matrix=False, main=main),
            Case(
                f"{name}, forward",
                "actnorm_backward",
                lambda m: (m.randn(1, channels, steps), m.randn(1, dtype=torch.float32), *norm(m)),
                6.0 * size,
                3 * size,
                matrix=False,
                main=main,
            ),
        ]
    return cases


def gate_cases(block: Block, seconds: float, *, main: bool) -> list[Case]:
    steps = steps_of(block.model, seconds)
    name, size = _spelled(block, seconds, 1), block.G * steps

    def u(m: Maker) -> Tensor:
        return m.randn(1, 2 * block.G, steps)

    return [
        Case(name, "gate", lambda m: (u(m),), OPS_GATE * size, 3 * size, matrix=False, main=main),
        Case(
            name,
            "gate_backward",
            lambda m: (m.randn(1, block.G, steps), u(m)),
            2 * OPS_GATE * size,
            5 * size,
            matrix=False,
            main=main,
        ),
    ]


def flow_step_cases(block: Block, channels: int, early: int, seconds: float, *, main: bool) -> list[Case]:
    """WaveGlow's step between two stacks, `early` channels joining in inference and leaving in training."""
    steps = steps_of(block.model, seconds)
    name = f"{block.model}, {channels} channels, {seconds:g} s"

    def arguments(m: Maker, reverse: bool) -> tuple[Any, ...]:
        entering = channels if reverse else channels + early
        return (
            m.randn(1, entering, steps),
            m.randn(1, block.S, steps),
            m.weight(entering, block.S),
            m.randn(entering, scale=0.1),
            _invertible(m, channels),
            m.randn(1, early, steps) if early and reverse else None,
            0 if reverse else early,
            "exp",
            False,
            reverse,
            not reverse,
        )

    def flops(entering: int) -> float:
        return steps * (2.0 * entering * block.S + 2.0 * channels * channels + OPS_COUPLING * entering / 2)

    total = channels + early
    return [
        Case(
            f"{name}, reverse",
            "flow_step",
            lambda m: arguments(m, True),
            flops(channels),
            (block.S + 2 * total) * steps,
            main=main,
        ),
        Case(
            f"{name}, forward",
            "flow_step",
            lambda m: arguments(m, False),
            flops(total),
            (block.S + 2 * total) * steps,
            main=main,
        ),
        Case(
            f"{name}, forward",
            "flow_step_backward",
            lambda m: (m.randn(1, total, steps), m.randn(1, dtype=torch.float32), *arguments(m, False)),
            3 * flops(total),
            (2 * block.S + 3 * total) * steps,
            main=main,
        ),
    ]


ALL_BLOCK_OPS = ("wn_layer", "wn_layer_backward", "wn", "wn_backward")


def toy_cases() -> list[Case]:
    """Every operation once, small."""
    made = block_cases(TOY, 1, 2, ops=ALL_BLOCK_OPS, main=True)
    made += gate_cases(TOY, 1, main=True)
    made += small_cases("toy", 6, 1, form="exp", mask=True, invconv=True, actnorm=True, main=True)
    return made + flow_step_cases(TOY, 6, 2, 1, main=True)


def _all() -> list[Case]:
    cases: list[Case] = []
    for seconds in (1.0, 10.0):
        for batch in (1, 8, 32):
            first = (seconds, batch) == (10, 1)
            cases += block_cases(WAVEGLOW_256, seconds, batch, ops=ALL_BLOCK_OPS, main=first)
    for seconds, batch in ((0.5, 1), (30, 1), (0.5, 64)):
        cases += block_cases(WAVEGLOW_256, seconds, batch, ops=("wn",), main=False)
    for block in BLOCKS[1:]:
        cases += block_cases(block, 10, 1, ops=ALL_BLOCK_OPS, main=block is VITS)
    for block in (WAVEGLOW_256, VITS):
        cases += gate_cases(block, 10, main=block is WAVEGLOW_256)
    waveglow, flowavenet, glow_tts = "WaveGlow-256", "FloWaveNet block 3", "Glow-TTS"
    for channels in (8, 6, 4):
        main = channels == 8
        cases += small_cases(waveglow, channels, 10, form="exp", mask=False, invconv=True, actnorm=False, main=main)
    cases += small_cases(flowavenet, 16, 10, form="exp", mask=False, invconv=False, actnorm=True, main=True)
    cases += small_cases("VITS", 192, 10, form="additive", mask=True, invconv=False, actnorm=False, main=False)
    cases += small_cases(glow_tts, 160, 10, form="sigmoid", mask=True, invconv=True, actnorm=True, main=True)
    for channels, early in ((8, 0), (6, 2), (4, 2)):
        cases += flow_step_cases(WAVEGLOW_256, channels, early, 10, main=channels == 6)
    known = {**registry.SCHEMAS, **registry.BACKWARD_SCHEMAS}
    return [case for case in cases if case.op in known]


CASES = _all()
