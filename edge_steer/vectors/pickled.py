"""Tensors out of a torch pickle, by a machine that can build nothing else and calls nothing.

Takes the bytes of a `data.pkl` and a way to fetch storages, gives dicts, lists, tuples, numbers, text and numpy arrays.
It does not unpickle: `pickletools` splits the bytes into opcodes and the few that torch.save writes for tensors are
acted out here. Whatever else the bytes ask for, code above all, is refused by name. It knows nothing of files.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from edge_steer.core.errors import VectorError
from edge_steer.core.vector import Array

MAX_PICKLE = 2**17  # bytes; a layer takes about 60
MAX_VALUES = 2**24  # of all tensors together
FetchStorage = Callable[[str], bytes]
_DTYPES = {"Half": "<f2", "BFloat16": "<u2", "Float": "<f4", "Double": "<f8"}
_STORAGES = {f"torch {name}Storage": name for name in _DTYPES}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
STEERING_VECTOR = "steering_vectors.steering_vector SteeringVector"
_KNOWN = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED, STEERING_VECTOR}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_IGNORED = {"PROTO", "FRAME"}


@dataclass(frozen=True)
class Instance:
    """An object of one of the classes that are known, as the attributes it was saved with."""

    kind: str
    attributes: dict[Any, Any]


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


def load(data: bytes, fetch: FetchStorage) -> object:
    """What the pickle holds, tensors as float32 arrays. fetch: key of a storage -> its bytes, little-endian.

    Errors: VectorError for anything but tensors in plain containers, and for bytes that are no pickle.
    """
    if len(data) > MAX_PICKLE:
        raise VectorError(f"its pickle has {len(data)} bytes; the pickle of a vector has at most {MAX_PICKLE}")
    machine = _Machine(fetch)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.act(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise VectorError(f"its pickle is damaged: {str(error).splitlines()[0] if str(error) else 'it ends'}") from None
    raise VectorError("its pickle is damaged: it has no end")


class _Machine:
    """The stack of a pickle, and its memo."""

    def __init__(self, fetch: FetchStorage) -> None:
        self._fetch = fetch
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, bytes] = {}
        self._values_left = MAX_VALUES

    def pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise ValueError("an opcode takes from behind its mark")
        return self._stack.pop()

    def act(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise VectorError(f"its pickle uses the opcode {name}; torch.save writes none for tensors")

    def mark(self, _argument: object) -> None:
        self._marks.append(len(self._stack))

    def popped_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def put(self, argument: int | None) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]

    def get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def global_(self, argument: str) -> None:
        if argument not in _KNOWN:
            _refuse_global(argument)
        self._stack.append(_Global(argument))

    def stack_global(self, _argument: object) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.global_(f"{module} {name}")

    def set_items(self, items: list[Any]) -> None:
        """Keys and values in turn, into the dict below them."""
        target = self._stack[-1]
        keys, values = items[::2], items[1::2]
        if not isinstance(target, dict) or len(keys) != len(values):
            raise ValueError("items that no dict takes")
        for key, value in zip(keys, values, strict=True):
            if not isinstance(key, str | int):  # nothing else is hashed
                raise ValueError(f"a dict's key is a {type(key).__name__}; only text and whole numbers are read")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("items that no list takes")
        self._stack[-1].extend(items)

    def persistent(self, _argument: object) -> None:
        match self.pop():
            case ("storage", _Global(name), str(key), str(), int(count)) if name in _STORAGES and count >= 0:
                self._stack.append(_Storage(key, _STORAGES[name], count))
            case _:
                raise ValueError("a reference that is no tensor's storage")

    def new_object(self, _argument: object) -> None:
        arguments, kind = self.pop(), self.pop()
        if kind != _Global(STEERING_VECTOR) or not isinstance(arguments, tuple) or arguments:
            raise ValueError("an object that is no steering vector")
        self._stack.append(Instance(STEERING_VECTOR, {}))

    def build(self, _argument: object) -> None:
        state, target = self.pop(), self._stack[-1]
        if not isinstance(target, Instance) or not isinstance(state, dict):
            raise ValueError("attributes that no object takes")
        target.attributes.update(state)

    def reduce(self, _argument: object) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case _Global(name), () if name == _ORDERED:
                self._stack.append({})
            case _Global(name), (np.ndarray() as tensor, bool(), dict()) if name == _PARAMETER:
                self._stack.append(tensor)
            case _Global(name), (_Storage() as storage, int(first), tuple(size), tuple(stride), bool(), dict(), *_) if (
                name == _TENSOR
            ):
                self._stack.append(self.tensor(storage, first, size, stride))
            case _:
                raise ValueError("a call that builds no tensor")

    def tensor(self, storage: _Storage, first: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> Array:
        whole = all(isinstance(number, int) and number >= 0 for number in (first, *size, *stride))
        if not whole or not 1 <= len(size) <= 4 or len(size) != len(stride):
            raise ValueError("a tensor whose shape and strides are not 1 to 4 whole numbers each")
        count = math.prod(size)
        last = first + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if not 0 < count <= storage.count or last >= storage.count:
            raise ValueError(f"a tensor of shape {size} in a storage of {storage.count} values")
        if (left := self._values_left - count) < 0:
            raise ValueError(f"tensors of more than {MAX_VALUES} values")
        self._values_left = left
        kind = np.dtype(_DTYPES[storage.dtype])
        if storage.key not in self._storages:
            self._storages[storage.key] = self._fetch(storage.key)
        data = self._storages[storage.key]
        if len(data) != storage.count * kind.itemsize:
            raise ValueError(f"storage {storage.key!r} has {len(data)} bytes for {storage.count} values")
        flat = np.frombuffer(data, kind)
        strided = np.lib.stride_tricks.as_strided(flat[first:], size, [step * kind.itemsize for step in stride])
        return widened(strided, bfloat16=storage.dtype == "BFloat16")


def widened(values: np.ndarray[Any, Any], *, bfloat16: bool) -> Array:
    """Values of a narrower or wider kind as float32; bfloat16 comes as the uint16 of its bits. Past float32 is Inf."""
    if bfloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _refuse_global(name: str) -> NoReturn:
    shown = name.replace(" ", ".")[:100]
    raise VectorError(f"its pickle asks for {shown!r}, which is no tensor; it may run code, do not open it with torch")


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine.popped_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.popped_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.popped_to_mark()),
    "BINPERSID": _Machine.persistent,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "REDUCE": _Machine.reduce,
}
