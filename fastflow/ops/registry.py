"""Operations and backends: the schemas, who can run them, why not, and who is asked first.

Schemas live here, in Python, so that fake kernels and reference never need the compiled library. `fastflow::<op>` is
what models call; it picks a backend on every call. A compiled library implements the same schemas under
`fastflow_cpu::<op>` and `fastflow_cuda::<op>`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow import _native, _triton
from fastflow.ops.checks import no_autocast

log = logging.getLogger("fastflow")

_WN_LAYER = (
    "Tensor h, Tensor conv_weight, Tensor? conv_bias, Tensor res_skip_weight, Tensor? res_skip_bias, Tensor? cond, "
    "Tensor? cond_weight, Tensor? cond_bias, Tensor? input_bias, Tensor? mask, int dilation, bool causal, "
    "float res_scale, bool residual"
)
_WN = (
    "Tensor h, Tensor[] conv_weights, Tensor[] conv_biases, Tensor[] res_skip_weights, Tensor[] res_skip_biases, "
    "Tensor? cond, Tensor[] cond_weights, Tensor[] cond_biases, Tensor[] input_biases, Tensor? mask, int[] dilations, "
    "bool causal, float res_scale, float skip_scale, bool last_residual"
)
_AFFINE_COUPLING = "Tensor x, Tensor shift, Tensor? log_scale, Tensor? mask, str form, bool reverse"
_INVCONV1X1 = "Tensor x, Tensor weight, Tensor? mask, bool log_det"
_FLOW_STEP = (
    "Tensor x, Tensor hidden, Tensor end_weight, Tensor? end_bias, Tensor? weight, Tensor? early, int n_early, "
    "str form, bool transform_first, bool reverse, bool log_det"
)
_ACTNORM = "Tensor x, Tensor loc, Tensor scale, Tensor? mask, bool reverse"

SCHEMAS = {
    "gate": "(Tensor x) -> Tensor",
    "wn_layer": f"({_WN_LAYER}) -> (Tensor, Tensor)",
    "wn": f"({_WN}) -> Tensor",
    "affine_coupling": f"({_AFFINE_COUPLING}) -> (Tensor, Tensor)",
    "invconv1x1": f"({_INVCONV1X1}) -> (Tensor, Tensor)",
    "actnorm": f"({_ACTNORM}) -> (Tensor, Tensor)",
    "flow_step": f"({_FLOW_STEP}) -> (Tensor, Tensor)",
}
"""Schema of each operation. Shapes and formulas are in the docstring of its public function."""

# A backward takes the gradients of the outputs, then the inputs of the forward. It returns one gradient per
# differentiable input, in the order of the forward's arguments (an empty tensor where `needs` is false or the input is
# None; lists are spliced in). Backends may implement it; where one does not, the reference formula runs.
BACKWARD_SCHEMAS = {
    "gate_backward": "(Tensor grad, Tensor x) -> Tensor",
    "wn_layer_backward": f"(Tensor grad_h, Tensor grad_skip, {_WN_LAYER}, bool[] needs) -> Tensor[]",
    "wn_backward": f"(Tensor grad, {_WN}, bool[] needs) -> Tensor[]",
    "affine_coupling_backward": f"(Tensor grad, Tensor grad_log_det, {_AFFINE_COUPLING}) -> Tensor[]",
    "invconv1x1_backward": f"(Tensor grad, Tensor grad_log_det, {_INVCONV1X1}) -> Tensor[]",
    "actnorm_backward": f"(Tensor grad, Tensor grad_log_det, {_ACTNORM}) -> Tensor[]",
    "flow_step_backward": f"(Tensor grad, Tensor grad_log_det, {_FLOW_STEP}) -> Tensor[]",
}

# What fastflow_cpu has beside these: SqueezeWave's stack, see `fastflow.models.squeezewave`; and what the gated
# operations' backward is made of. A layer is run again and returns its residual output and the gate's input u
# [B, 2G, T]; from that, `wn_gate_backward` returns u's gradient and the gate's output [B, G, T].
_CPU_SCHEMAS = {
    "separable_wn": (
        "(Tensor h, Tensor cond, Tensor scale, Tensor shift, Tensor taps, Tensor weight, Tensor bias, "
        "Tensor res_weight, Tensor res_bias) -> Tensor"
    ),
    "wn_layer_keeping_u": f"({_WN_LAYER}) -> (Tensor, Tensor)",
    "wn_gate_backward": "(Tensor grad_r, Tensor u, Tensor res_skip_weight) -> (Tensor, Tensor)",
}

# Where fastflow_cuda differs: the gated operations are told whether they may multiply float32 in tf32, and
# `wn_gate_backward` computes u again, which costs a GPU less than keeping it. `ops/<op>/native.py` bridges the two.
_CUDA_SCHEMAS = {
    "wn_layer": f"({_WN_LAYER}, bool tf32) -> (Tensor, Tensor)",
    "wn": f"({_WN}, bool tf32) -> Tensor",
    "wn_gate_backward": (
        "(Tensor grad_r, Tensor h, Tensor conv_weight, Tensor? conv_bias, Tensor res_skip_weight, Tensor? cond, "
        "Tensor? cond_weight, Tensor? cond_bias, Tensor? input_bias, int dilation, bool causal, bool residual, "
        "bool tf32) -> (Tensor, Tensor)"
    ),
}

BACKENDS = ("reference", "cpu", "triton", "cuda")

# `auto` asks from left to right. Measured beside the reference, interleaved, on one core with AVX2 (on one with AVX-512
# only earlier kernels of `wn`, `gate` and `actnorm` were: 1.1 to 1.7 times as fast), in float32: `wn` is 1.4 to 2.1
# times as fast (C 64 to 256, T 1000 to 12800), `gate` 2.4 to 3.4, `actnorm` 2.3 to 3.2, `flow_step` 1.7 to 3.8
# (WaveGlow-256, T 640 to 3200), `invconv1x1` 3.7 to 9.8 (4 to 8 channels; 1.0 for 160),
# `affine_coupling` 1.2 to 2.4, but 0.8 for the additive form on 86 steps, 2 µs of 10; in bfloat16 all of these gain at
# least as much. The gated stack in bfloat16 is 33 times as fast with AVX2 (WaveGlow-256); with AVX-512, where PyTorch's
# own products may have bfloat16 instructions, it has not been measured. Backwards, in float32: the stack's 1.2, `gate`
# 3.4, `actnorm` 1.6 to 2.4, `affine_coupling` 1.8 to 3.8 (additive 0.7 to 0.9); those of `invconv1x1` and `flow_step`
# stay with the reference: 0.12 and 0.84 ms for 2000 steps of WaveGlow-256, whose training step takes seconds. Without
# AVX2, and in float64, PyTorch's own convolutions win.
_AUTO_CPU: dict[torch.dtype, dict[str, tuple[str, ...]]] = {}
if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
    _AUTO_CPU[torch.float32] = dict.fromkeys(SCHEMAS, ("cpu", "reference"))
    _AUTO_CPU[torch.bfloat16] = dict.fromkeys(SCHEMAS, ("cpu", "reference"))
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        del _AUTO_CPU[torch.bfloat16]["wn"], _AUTO_CPU[torch.bfloat16]["wn_layer"]
# On a GPU nothing has been measured yet: fewer launches and fewer bytes decide.
_AUTO_CUDA = dict.fromkeys(SCHEMAS, ("triton", "reference")) | {"gate": ("cuda", "triton", "reference")}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why."""


class BackendStatus(NamedTuple):
    """One line of `status()`."""

    backend: str
    can_run: bool
    reason: str


# The implementations of every backend: {backend: {operation: function}}. Filled by `implement`.
_implementations: dict[str, dict[str, Callable[..., Any]]] = {name: {} for name in BACKENDS}
# Who takes conditioning weights per phase, [P, 2G, C_c], in `wn`; one that does not is never given any.
_WITH_PHASES = {("reference", "wn"), ("reference", "wn_backward"), ("cpu", "wn"), ("cuda", "wn")}
_requested = "auto"
_chosen: set[tuple[str, str, str]] = set()


def implement(backend: str, op: str, function: Callable[..., Any]) -> None:
    """Register `function` as `backend`'s implementation of `op` (a name of SCHEMAS or BACKWARD_SCHEMAS)."""
    _implementations[backend][op] = function


def implements(backend: str, op: str) -> bool:
    """Whether `backend` has an implementation of `op`, whatever may keep it from running."""
    return op in _implementations[backend]


@functools.cache
def _load_triton() -> None:
    """Import the kernels: each module registers what it implements. Late, since `import triton` takes a while."""
    for op in SCHEMAS:
        importlib.import_module(f"fastflow.ops.{op}.triton")
    for op in ("wn_layer", "wn"):  # long enough for files of their own
        importlib.import_module(f"fastflow.ops.{op}.triton_backward")


@functools.cache
def _load_cpu() -> None:
    """Register what is made of the CPU library's operations."""
    for op in ("wn_layer", "wn"):
        importlib.import_module(f"fastflow.ops.{op}.cpu")


@functools.cache
def _load_cuda(key: str) -> None:
    """Register what the CUDA library implements for a dispatch key: CUDA, or in the tests' emulator CPU."""
    for op in (SCHEMAS | BACKWARD_SCHEMAS).keys() - _CUDA_SCHEMAS.keys():
        _implement_native("cuda", op, key)
    for op in ("wn_layer", "wn"):
        importlib.import_module(f"fastflow.ops.{op}.cuda")


def _unavailable(backend: str) -> str | None:
    """Return why `backend` cannot run anything on this machine, or None."""
    if backend == "reference":
        return None
    if backend == "triton":
        reason = _triton.unavailable()
        if reason is None:
            _load_triton()
        return reason
    if backend == "cuda" and _emulated:
        return None
    reason = _native.status()[backend]
    if reason is None and backend == "cpu":
        reason = _refusal("cpu", "cpu")
        _load_cpu()
    if reason is None and backend == "cuda":
        if not torch.cuda.is_available():
            return "no CUDA device is available"
        _load_cuda("CUDA")
    return reason


def _has_phases(op: str, rest: Sequence[Any]) -> bool:
    """Whether the arguments after the first have a conditioning weight for each of several phases."""
    if op not in ("wn", "wn_backward"):
        return False
    first = 6 if op == "wn_backward" else 5  # the place of `cond_weights`
    return any(weight.dim() == 3 for weights in rest[first : first + 1] for weight in weights)


def _unsupported(backend: str, op: str, x: Tensor, *rest: Any) -> str | None:
    """Return why `backend` cannot run `op` on a tensor like `x`, or None. All support rules are here.

    `rest`: the other arguments, where they are known.
    """
    reason = _unavailable(backend)
    if reason is not None:
        return reason
    if op not in _implementations[backend]:
        return f"it has no `{op}` kernel"
    if (backend, op) not in _WITH_PHASES and _has_phases(op, rest):
        return f"its `{op}` takes no conditioning weights per phase, [P, 2G, C_c]"
    if backend == "cpu":
        if x.device.type != "cpu":
            return f"the tensors are on {x.device}"
        if x.dtype == torch.bfloat16 and op.endswith("_backward"):
            return f"its gradients are for float32 and float64; got {x.dtype}"
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            return f"its kernels take float32, float64 and bfloat16; got {x.dtype}"
    if backend == "triton":
        interpreted = _triton.interpreted()
        if x.device.type != ("cpu" if interpreted else "cuda"):
            return f"the tensors are on {x.device}" + (" and TRITON_INTERPRET is set" if interpreted else "")
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"its kernels take float32, float16 and bfloat16; got {x.dtype}"
        if x.device.type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(x.device)
            if capability < (8, 0):
                return f"its kernels need compute capability 8.0; {x.device} has {capability[0]}.{capability[1]}"
        if x.shape[0] > 65535 and op.startswith(("wn", "flow_step")):
            return f"its grids take at most 65535 items; got a batch of {x.shape[0]}"
        if op.startswith("flow_step") and x.shape[1] > 32:
            return f"its `flow_step` takes at most 32 channels; got {x.shape[1]}"
    if backend == "cuda":
        if x.device.type != "cuda" and not _emulated:
            return f"the tensors are on {x.device}"
        if (refusal := _refusal("cuda", str(x.device))) is not None:
            return refusal
        if x.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            return f"its kernels take float64, float32, float16 and bfloat16; got {x.dtype}"
    return None


def chosen(op: str, x: Tensor, *rest: Any) -> tuple[str, str]:
    """Return what `auto` takes for `op`, a forward or a backward, on tensors like `x`, and why.

    `rest`: the other arguments, where they are known.
    """
    table = _AUTO_CUDA if x.device.type == "cuda" else _AUTO_CPU.get(x.dtype, {})
    refused = []
    for backend in table.get(op.removesuffix("_backward"), ("reference",)):
        reason = _unsupported(backend, op, x, *rest)
        if reason is None:
            break
        refused.append(f"{backend}: {reason}")
    where = f"{str(x.dtype).removeprefix('torch.')} on {x.device.type}"
    return backend, "; ".join(refused) or f"the first choice for {where}"


def _auto(op: str, x: Tensor, *rest: Any) -> str:
    """Return the backend that `auto` takes on these arguments, logged once."""
    backend, _ = chosen(op, x, *rest)
    if (op, x.device.type, backend) not in _chosen:
        _chosen.add((op, x.device.type, backend))
        log.info("`%s` on %s runs on backend '%s'", op, x.device.type, backend)
    return backend


def cpu_kernel(op: str, x: Tensor) -> Callable[..., Any] | None:
    """Return `op`, a gated stack of the CPU library's own, if `wn` on tensors like `x` runs in that library."""
    backend = chosen("wn", x)[0] if _requested == "auto" else _requested
    if backend != "cpu" or _unsupported("cpu", "wn", x) is not None or not _has_kernel("cpu", op, "CPU"):
        return None
    kernel: Callable[..., Any] = getattr(torch.ops.fastflow_cpu, op).default
    return kernel


def kernels_take_phases(x: Tensor) -> bool:
    """Whether `wn` on tensors like `x` runs on kernels that take conditioning weights per phase."""
    backend = _auto("wn", x) if _requested == "auto" else _requested
    return backend != "reference" and (backend, "wn") in _WITH_PHASES


def _resolve(op: str, *args: Any) -> Callable[..., Any]:
    """Return the implementation of `op` for these arguments, by the backend asked for."""
    if _requested == "auto":
        return _implementations[_auto(op, *args)][op]
    reason = _unsupported(_requested, op, *args)
    if reason is not None:
        raise BackendError(f"backend '{_requested}' cannot run `{op}`: {reason}")
    return _implementations[_requested][op]


def _resolve_backward(op: str, *args: Any) -> Callable[..., Any]:
    """Return the implementation of a backward: the backend's own where it has one, else the reference formula."""
    backend = _auto(op, *args) if _requested == "auto" else _requested
    return _implementations[backend if _unsupported(backend, op, *args) is None else "reference"][op]


def parts_of_backward(op: str, x: Tensor, *rest: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return the backward of `op` in two parts, from the backend that runs `op` on tensors like `x`, or None.

    The first runs the operation again and returns its result with what the second needs: for a caller who needs the
    result again too. Backends implement them as `<op>_again` and `<op>_again_backward`.
    """
    backend = _auto(op, x, *rest) if _requested == "auto" else _requested
    if _unsupported(backend, f"{op}_again_backward", x) is not None:
        return None
    if (backend, f"{op}_backward") not in _WITH_PHASES and _has_phases(op, rest):
        return None
    return _implementations[backend][f"{op}_again"], _implementations[backend][f"{op}_again_backward"]


def _contiguous(result: Any) -> Any:
    """Return the result with contiguous tensors, as the fake kernels promise for every backend."""
    if isinstance(result, Tensor):
        return result.contiguous()
    return type(result)(x.contiguous() for x in result)


def define(op: str, reference: Callable[..., Any], fake: Callable[..., Any], *, backward: bool = False) -> Any:
    """Define `fastflow::<op>` with its reference and its fake kernel; return it, for `register_autograd`."""
    resolve = _resolve_backward if backward else _resolve

    def dispatch(*args: Any) -> Any:
        implementation = resolve(op, *args)
        # the public functions have cast already where autocast asks for it
        with no_autocast(args[0].device):
            return _contiguous(implementation(*args))

    schema = BACKWARD_SCHEMAS[op] if backward else SCHEMAS[op]
    custom = torch.library.custom_op(f"fastflow::{op}", dispatch, mutates_args=(), schema=schema)
    custom.register_fake(fake)
    implement("reference", op, reference)
    return custom


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operations inside the `with` block on one backend.

    Args:
        name: "reference", "cpu", "triton", "cuda", or "auto" (the fastest that can run). The choice holds for the
            whole process, like the flags in `torch.backends`, so that backward threads see it too.

    Raises:
        ValueError: the name is not one of these.
        BackendError: the backend cannot run on this machine (at once), or cannot run an operation (when called).
    """
    global _requested
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"`name` must be one of {', '.join((*BACKENDS, 'auto'))}; got {name!r}")
    if name != "auto" and (reason := _unavailable(name)) is not None:
        raise BackendError(f"backend '{name}' cannot run: {reason}")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def status() -> list[BackendStatus]:
    """Return for every backend whether it can run here, with its operations or the reason why not."""
    rows = []
    for name in BACKENDS:
        reason = _unavailable(name)
        operations = ", ".join(op for op in SCHEMAS if op in _implementations[name])
        rows.append(BackendStatus(name, reason is None, reason if reason is not None else f"operations: {operations}"))
    return rows


def _register_native() -> None:
    """Define the schemas for the compiled libraries and register what each of them implements."""
    _native.load()
    of_cpu = SCHEMAS | BACKWARD_SCHEMAS | _CPU_SCHEMAS
    for backend, schemas in (("cpu", of_cpu), ("cuda", SCHEMAS | BACKWARD_SCHEMAS | _CUDA_SCHEMAS)):
        library: Any = torch.library.Library(f"fastflow_{backend}", "DEF")  # type: ignore[no-untyped-call]
        _libraries.append(library)
        for op, schema in schemas.items():
            library.define(op + schema)
    for op in SCHEMAS | BACKWARD_SCHEMAS:
        _implement_native("cpu", op, "CPU")


@functools.cache
def _refusal(backend: str, device: str) -> str | None:
    """Return why a library that is loaded does not run on a device, or None: it says so on its first call.

    Such as that FASTFLOW_CPU_ISA asks for what the processor lacks, or that it has no code for the GPU.
    """
    probe = torch.zeros(1, 2, 1, dtype=torch.float32, device=device)  # whatever the program's defaults are
    try:
        _implementations[backend]["gate"](probe)
    except (RuntimeError, ValueError) as error:  # which of them depends on PyTorch's version
        return str(error).splitlines()[0]
    return None


def _has_kernel(backend: str, op: str, key: str) -> bool:
    """Whether the library that was loaded has this; it may be of another build."""
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastflow_{backend}::{op}", key)
    return has


def _implement_native(backend: str, op: str, key: str) -> None:
    """Register a compiled library's implementation of `op`, if it has one."""
    if _has_kernel(backend, op, key):
        implement(backend, op, getattr(getattr(torch.ops, f"fastflow_{backend}"), op).default)


def emulate() -> None:
    """Run backend "cuda" on the CPU from now on: the tests' emulator has registered its kernels there."""
    global _emulated
    _load_cuda("CPU")
    _emulated = True


_emulated = False
_libraries: list[torch.library.Library] = []  # a Library takes its definitions back when it is collected
_register_native()
