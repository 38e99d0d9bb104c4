"""WaveGlow: NVIDIA/waveglow (glow.py and glow_old.py), DeepLearningExamples with its torch.hub entry, NeMo."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fastflow.nn.wn import Weights
from fastflow.ops.invconv1x1.api import inverse, log_abs_det, multiply
from fastflow.stacks import convs
from fastflow.stacks.block import Block, Randn, on_cpu
from fastflow.stacks.couplings import ON_A_CPU
from fastflow.stacks.gated import FusedWN, arguments, as_cond


class WN(FusedWN):
    """`glow.WN`, NeMo's `WaveNet`, and with a list `cond_layers` in place of `cond_layer` that of `glow_old`."""

    stack = "WaveGlow"
    forward_arguments: ClassVar[tuple[str, ...]] = ("forward_input",)
    attributes = ("n_channels", "n_layers", "start", "end")

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return super().knows(module) and (hasattr(module, "cond_layer") or hasattr(module, "cond_layers"))

    @classmethod
    def objection(cls, module: Any) -> str | None:
        for i, conv in enumerate(getattr(module, "cond_layers", ())):
            if reason := convs.objection(conv, f"cond_layers.{i}"):
                return reason
        return super().objection(module)

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        cond = module.cond_layer if hasattr(module, "cond_layer") else module.cond_layers[0]
        pair = randn(2, module.start.in_channels, 11), randn(2, cond.in_channels, 11)
        return [dict(zip(cls.forward_arguments, pair if len(cls.forward_arguments) == 2 else [pair], strict=True))]

    def _convolutions(self) -> list[nn.Module]:
        return [*super()._convolutions(), *getattr(self, "cond_layers", ())]

    def _pack(self) -> Weights:
        cond: Any = getattr(self, "cond_layers", ())
        weights = super()._pack()
        if cond:
            weights = weights._replace(
                cond_weights=[convs.weight(conv)[:, :, 0] for conv in cond],
                cond_biases=[conv.bias for conv in cond if conv.bias is not None],
            )
        return weights

    def _network(self, audio: Tensor, spect: Tensor) -> Tensor:
        h: Tensor = self.start(audio)  # type: ignore[operator]
        dilations = [conv.dilation[0] for conv in self.in_layers]  # type: ignore[union-attr]
        out: Tensor = self.end(self._stack(h, as_cond(spect, h), dilations=dilations))  # type: ignore[operator]
        return out

    def forward(self, forward_input: tuple[Tensor, Tensor]) -> Any:
        audio, spect = forward_input
        return self._network(audio, spect) if self._worth_it(audio) else super().forward(forward_input)


class EntryWN(WN):
    """The network of DeepLearningExamples and its torch.hub entry, whose arguments are not a pair."""

    forward_arguments = ("audio", "spect")

    def forward(self, audio: Tensor, spect: Tensor) -> Any:  # type: ignore[override]
        return self._network(audio, spect) if self._worth_it(audio) else super(WN, self).forward(audio, spect)


class Invertible1x1Conv(Block):
    """`Invertible1x1Conv` of all of them.

    The original keeps the inverse for ever; here it follows the weight. Some publications give NaN as the logarithm of
    a negative determinant; here it is that of its absolute value.
    """

    stack = "WaveGlow"
    op = "invconv1x1"

    @classmethod
    def knows(cls, module: Any) -> bool:
        named = "Invertible1x1Conv" in type(module).__name__ and isinstance(getattr(module, "conv", None), nn.Conv1d)
        return named and arguments(module) in (("z",), ("z", "reverse"))

    @classmethod
    def objection(cls, module: Any) -> str | None:
        if (reason := convs.objection(module.conv, "conv")) is not None:
            return reason
        if module.conv.kernel_size != (1,) or module.conv.bias is not None:
            return f"`conv` is {module.conv}, not a matrix product"
        return None

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        return ON_A_CPU if on_cpu(module) else None

    @classmethod
    def example(cls, module: Any, randn: Randn) -> list[dict[str, Any]]:
        return [{"z": randn(2, module.conv.in_channels, 9)}]  # the original's reverse would leave its inverse behind

    def _weight(self) -> Tensor:
        weight: Tensor = self.conv.weight  # type: ignore[union-attr, assignment]
        return weight[:, :, 0]

    def forward(self, z: Tensor, reverse: bool = False) -> Any:
        if reverse:
            return self.infer(z)
        weight = self._weight()
        return multiply(z, weight), z.shape[0] * z.shape[2] * log_abs_det(weight)

    def infer(self, z: Tensor) -> Tensor:
        weight = self._weight()
        matrix: Tensor = self._fastflow.get([self.conv.weight], lambda: inverse(weight))  # type: ignore[union-attr, list-item]
        return multiply(z, matrix)


BLOCKS: tuple[type[Block], ...] = (WN, EntryWN, Invertible1x1Conv)
