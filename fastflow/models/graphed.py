"""WaveGlow's synthesis as one CUDA graph: for short audio, launching the kernels takes longer than running them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastflow.models.waveglow import WaveGlow
from fastflow.nn.packing import Packed
from fastflow.ops import checks


class GraphedInfer:
    """`model.infer` for one batch size and length: captured once, replayed from then on.

    A call takes what `infer` takes and gives the same audio, with two differences: the values of `mel` are not looked
    at (NaN gives NaN), and autocast does not reach inside. Captured are the weights and the backend in use. Where a
    parameter has changed since, the next call captures again; a write through `.data`, or to a parameter that was made
    in inference mode, leaves no trace on it. Calls share buffers: they must not overlap, on several streams or threads.

        model = fastflow.load("waveglow_256channels.pt").cuda().bfloat16()
        infer = GraphedInfer(model, batch=1, frames=861)
        audio = infer(mel, sigma=0.6)

    Args:
        model: on a CUDA device.
        batch: B of the mels to come.
        frames: F of the mels to come.

    Raises:
        TypeError: `model` is no WaveGlow.
        ValueError: `model` is not on a CUDA device, a size is less than 1, or a 1x1 weight is singular.
    """

    def __init__(self, model: WaveGlow, batch: int, frames: int) -> None:
        if not isinstance(model, WaveGlow):
            raise TypeError(f"`model` must be a WaveGlow; got {type(model).__name__}")
        for name, size in (("batch", batch), ("frames", frames)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1; got {size}")
        self.model, self.batch, self.frames = model, batch, frames
        self._modules = list(model.modules())
        self._capture()

    def __call__(
        self,
        mel: Tensor,
        sigma: float = 1.0,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return audio [batch, frames * hop_length]; arguments and errors are those of `WaveGlow.infer`."""
        self.model._check_mel(mel)
        layout = "[batch, n_mel_channels, frames] of this graph"
        checks.check_shape("mel", mel, layout, (self.batch, self.model.n_mel_channels, self.frames))
        if not 0 <= sigma < math.inf:
            raise ValueError(f"`sigma` must be a finite number >= 0; got {sigma}")
        if self._state() != self._captured:
            self._capture()
        with torch.no_grad():
            noise = self.model._noise(mel, self._noise.shape[2], z, generator)
            self._noise.copy_(self.model._scaled(noise, sigma))
            self._mel.copy_(mel)
            self._replay()
            return self._audio.clone()

    def _parameters(self) -> list[Tensor]:
        return [p for module in self._modules for p in module._parameters.values() if p is not None]

    def _state(self) -> list[tuple[int, int]]:
        """Return what changes with a parameter: its version, and where it lies."""
        return [(-1 if p.is_inference() else p._version, p.data_ptr()) for p in self._parameters()]

    def _capture(self) -> None:
        model, weight = self.model, self.model._convinv(0).conv.weight
        self._captured: list[tuple[int, int]] | None = None  # where capturing fails, the next call tries again
        state = self._state()
        with torch.inference_mode(False), torch.no_grad(), checks.no_autocast(weight.device):
            self._mel = weight.new_zeros(self.batch, model.n_mel_channels, self.frames)
            self._noise = weight.new_zeros(self.batch, model.n_group, self.frames * model.hop_length // model.n_group)
            self._replay, self._audio = record(lambda: model._synthesised(self._mel, self._noise), weight.device)
        # A graph does not keep alive what it reads, and a model may let go of either.
        packed = [v._cached for module in self._modules for v in vars(module).values() if isinstance(v, Packed)]
        self._kept = [p.detach() for p in self._parameters()], packed
        self._captured = state


def record(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Capture `run`; return what replays it, and the tensor that then holds its result."""
    if device.type != "cuda":
        raise ValueError(f"`model` must be on a CUDA device, since a CUDA graph is captured; got {device}")
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What happens only once must not be captured: kernels compile, weights are packed, and libraries keep a
            # workspace for each stream.
            for _ in range(2):
                run()
            with torch.cuda.graph(graph, stream=stream):
                out = run()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, out
