"""Evaluates a pickle without executing anything in it.

The standard library's disassembler (`pickletools.genops`, which only decodes) reads the instructions; the
function here carries out those that build values. No import takes place and no object of the file's choosing
is ever called: a global is only a name, looked up in the tables below, and a name that is not there is
refused. What comes out are numbers, strings, lists, tuples, dicts and sets, tensors as `StoredTensor` and
objects of known classes as `Recorded`.

`pickle.Unpickler` with its `find_class` overridden would not do: it obeys `__setstate__` of the objects it
built, takes extension codes from a process-wide cache, and lets one instruction ask for a memo of 2^32
entries.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .errors import CheckpointError, RefusedGlobalError, quote
from .tensors import Storage, StoredTensor

# A WaveGlow checkpoint with its optimizer takes about 60,000 instructions, a FloWaveNet's several times that; the bound
# keeps a file of empty containers, a byte each, from filling the memory.
MAX_INSTRUCTIONS = 2_000_000


class Stream(Protocol):
    """What `pickletools.genops` reads from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class Global:
    """The name of a class, function or constant; never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Recorded:
    """An object of a class in `_RECORDED`: how it was made and the attributes it was given. It does
    nothing."""

    __slots__ = ("args", "cls", "state")

    def __init__(self, cls: Global, args: tuple[Any, ...]) -> None:
        self.cls = cls
        self.args = args
        self.state: dict[Any, Any] = {}


DTYPES = {
    name: getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    ]
} | {
    "double": torch.float64,
    "float": torch.float32,
    "half": torch.float16,
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
}

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

# Modules whose classes of the given names are known to be nothing but parameters and settings. A repository
# that holds a copy of the published files puts a package's name before them ("waveglow.glow",
# "vocoder.waveglow.model").
_PUBLISHED_MODULES = ("glow", "glow_old", "waveglow.model")
_PUBLISHED_CLASSES = {"WaveGlow", "WN", "Invertible1x1Conv", "SqueezeWave", "Upsample1d"}

# Objects that checkpoints hold beside the weights. They are recorded and then left alone.
_RECORDED = {
    ("torch.nn.modules.module", "Module"),
    ("torch.nn.modules.conv", "Conv1d"),
    ("torch.nn.modules.conv", "ConvTranspose1d"),
    ("torch.nn.modules.batchnorm", "BatchNorm1d"),
    ("torch.nn.modules.container", "ModuleList"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.utils.weight_norm", "WeightNorm"),
    ("torch.nn.parallel.data_parallel", "DataParallel"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}

# Names that occur as arguments of the functions below and are never built.
_NAMES = {
    (module, name) for module in ("builtins", "__builtin__") for name in ("object", "list", "int", "float", "dict")
}


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in _sequence(pairs):
        key, value = _sequence(pair)
        result[_key(key)] = value
    return result


def _default_dict(_factory: Any = None) -> dict[Any, Any]:
    return {}


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in _sequence(items)}


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(sizes))


def _latin1(text: Any, encoding: Any = None) -> bytes:
    # How protocol 2 spells bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("it asks `_codecs.encode` for something other than bytes spelled as latin-1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How protocol 2 spells empty ones.
    return b""


def _reconstruct_object(cls: Any, base: Any, _state: Any) -> Any:
    # How protocols 0 and 1 make an object before BUILD fills it.
    if base not in (Global("builtins", "object"), Global("__builtin__", "object")):
        raise CheckpointError("it rebuilds an object on a base other than `object`")
    return _create(cls, ())


def _tensor_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("it builds a tensor on something that is not a storage")
    return _stored(storage, storage.dtype, offset, size, stride, metadata)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("it builds a tensor on something that is not a storage")
    if not (isinstance(dtype, Global) and dtype.module == "torch" and dtype.name in DTYPES):
        raise CheckpointError("it builds a tensor of an unknown dtype")
    return _stored(storage, DTYPES[dtype.name], offset, size, stride, metadata)


def _stored(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, metadata: Any) -> StoredTensor:
    if metadata:  # conjugate and negative bits: complex numbers only
        raise CheckpointError("it builds a tensor with conjugate or negative bits, which no real weight has")
    return StoredTensor(storage, dtype, offset, tuple(_sequence(size)), tuple(_sequence(stride)))


def _parameter(data: Any, _grad: Any = None, _hooks: Any = None, _state: Any = None) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise CheckpointError("it builds a parameter from something that is not a tensor")
    return data


def _tensor_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    # A tensor that carries attributes of its own; they say nothing about its numbers.
    if not isinstance(args, tuple):
        raise CheckpointError("it calls `torch._tensor._rebuild_from_type_v2` without a tuple of arguments")
    return _call(function, args)


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("builtins", "frozenset"): _frozenset,
    ("__builtin__", "frozenset"): _frozenset,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _latin1,
    ("copyreg", "_reconstructor"): _reconstruct_object,
    ("copy_reg", "_reconstructor"): _reconstruct_object,
    ("torch._utils", "_rebuild_tensor"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
}


def evaluate(stream: Stream, load_persistent: Callable[[Any], Any]) -> Any:
    """The value of the pickle at `stream`, which is left behind its last byte.

    `load_persistent` gives the value of a persistent id. Raises CheckpointError naming a global that is not
    in this module's tables, or saying that the pickle is damaged.
    """
    machine = _Machine(load_persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count >= MAX_INSTRUCTIONS:
                raise CheckpointError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except CheckpointError:
        raise
    # Everything that decoding arbitrary bytes, or taking values that are not there, can raise; a warning
    # about a backslash too, where warnings are errors.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, Warning) as error:
        raise CheckpointError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:200]})") from error
    raise CheckpointError("its pickle ends too early")


class _Machine:
    """The stack, the marks and the memo of a pickle; `step` carries out one instruction."""

    def __init__(self, load_persistent: Callable[[Any], Any]) -> None:
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}  # a dict: an index costs nothing, however large

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below_marks.pop()
        return items

    def step(self, instruction: str, argument: Any) -> None:
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(instruction == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                self.stack.append(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE":
                self.stack.append(argument)
            case "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                self.stack.append(argument)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                empty: dict[str, Callable[[], Any]] = {
                    "EMPTY_TUPLE": tuple,
                    "EMPTY_LIST": list,
                    "EMPTY_DICT": dict,
                    "EMPTY_SET": set,
                }
                self.stack.append(empty[instruction]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(instruction[-1])
                if size > len(self.stack):
                    raise IndexError("the stack is empty")
                items = tuple(self.stack[-size:])
                self.stack[-size:] = [items]
            case "MARK":
                self.below_marks.append(self.stack)
                self.stack = []
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                values = self.pop_mark()
                build: dict[str, Callable[[list[Any]], Any]] = {
                    "TUPLE": tuple,
                    "LIST": list,
                    "DICT": _dict,
                    "FROZENSET": _frozenset,
                }
                self.stack.append(build[instruction](values))
            case "POP":
                self.pop() if self.stack else self.pop_mark()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "APPEND":
                value = self.pop()
                _expect(self.stack[-1], list).append(value)
            case "APPENDS":
                values = self.pop_mark()
                _expect(self.stack[-1], list).extend(values)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _expect(self.stack[-1], dict)[_key(key)] = value
            case "SETITEMS":
                values = self.pop_mark()
                _expect(self.stack[-1], dict).update(_dict(values))
            case "ADDITEMS":
                values = self.pop_mark()
                _expect(self.stack[-1], set).update(map(_key, values))
            case "GLOBAL":
                self.stack.append(_resolve(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.stack.append(_resolve(module, name))
            case "INST":
                cls = _resolve(*argument.split(" ", 1))
                self.stack.append(_call(cls, tuple(self.pop_mark())))
            case "REDUCE":
                args = _expect(self.pop(), tuple)
                self.stack.append(_call(self.pop(), args))
            case "NEWOBJ":
                args = _expect(self.pop(), tuple)
                self.stack.append(_create(self.pop(), args))
            case "BUILD":
                state = self.pop()
                _give_state(self.stack[-1], state)
            case "PERSID":
                self.stack.append(self.load_persistent(argument))
            case "BINPERSID":
                self.stack.append(self.load_persistent(self.pop()))
            case _:
                raise CheckpointError(f"its pickle uses the instruction {instruction}, which no checkpoint needs")


def _resolve(module: Any, name: Any) -> Global:
    """The name, if it is one that may occur in a checkpoint. Names are compared whole: "os.path" is no way
    round."""
    if isinstance(module, str) and isinstance(name, str):
        pair = (module, name)
        if pair in _FUNCTIONS or pair in _RECORDED or pair in _NAMES or _is_published(module, name):
            return Global(module, name)
        if module == "torch" and (name in DTYPES or name in STORAGES):
            return Global(module, name)
        if module in ("torch.cuda", "torch.storage") and name in STORAGES:
            return Global(module, name)
        reason = quote(f"{module}.{name}")
    else:
        reason = "a global whose name is not a string"
    raise RefusedGlobalError(
        f"it refers to {reason}. Only tensors, plain containers and the published classes are read;"
        " code in a checkpoint is never run, and nothing of this file was"
    )


def _is_published(module: str, name: str) -> bool:
    return name in _PUBLISHED_CLASSES and any(
        module == published or module.endswith("." + published) for published in _PUBLISHED_MODULES
    )


def _call(function: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(function, Global):
        raise CheckpointError(f"it calls a value of type {type(function).__name__}")
    known = _FUNCTIONS.get((function.module, function.name))
    return known(*args) if known is not None else _create(function, args)


def _create(cls: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(cls, Global):
        raise CheckpointError(f"it makes an object of a class that is a value of type {type(cls).__name__}")
    if (cls.module, cls.name) in _FUNCTIONS:
        return _FUNCTIONS[cls.module, cls.name](*args)
    if (cls.module, cls.name) in _RECORDED or _is_published(cls.module, cls.name):
        return Recorded(cls, args)
    raise CheckpointError(f"it makes an object of {quote(str(cls))}, which may only be named")


def _give_state(target: Any, state: Any) -> None:
    if isinstance(target, Recorded):
        if isinstance(state, dict):
            target.state.update(state)
        return  # the state of a numpy array or random generator is a tuple, and nothing here needs it
    # An OrderedDict carries attributes too (`_metadata` of a state dict), which nothing here needs.
    _expect(target, dict)


def _expect(value: Any, kind: type) -> Any:
    # The exact type: everything here builds plain ones only.
    if type(value) is not kind:
        raise CheckpointError(f"its pickle is damaged (a {kind.__name__} is needed where a {type(value).__name__} is)")
    return value


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise CheckpointError(f"its pickle is damaged (a list is needed where a {type(value).__name__} is)")
    return value


def _dict(flat: list[Any]) -> dict[Any, Any]:
    if len(flat) % 2:
        raise CheckpointError("its pickle is damaged (a dict with a key but no value)")
    return {_key(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _key(value: Any) -> Any:
    # Hashing a tuple of tuples of one tuple takes time exponential in the file's size, so no tuples.
    if not isinstance(value, str | bytes | int | float | None | Global):
        raise CheckpointError(f"it uses a {type(value).__name__} as a key; only strings and numbers are read")
    return value
