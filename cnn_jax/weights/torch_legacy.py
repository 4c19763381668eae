"""Reader of the files that torch.save wrote before PyTorch 1.6 (".pth"), without PyTorch and without `pickle`.

Such a file is a row of pickles: a magic number, the version, facts about the machine, the object, whose tensors refer
to storages by key, and the list of those keys; then, for each key, a count (int64) and so many raw elements. A pickle
is a program, and Python's own reader would run whatever it says. The interpreter here knows the few instructions
that a dictionary of tensors takes, and can construct nothing else.
"""

import io
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_jax.errors import UserError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\x03\x04"
_MOST_AXES = 32
# What a storage class of torch holds, little-endian.
_STORAGES = {
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "HalfStorage"): "<f2",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
    ("torch", "ShortStorage"): "<i2",
    ("torch", "CharStorage"): "i1",
    ("torch", "ByteStorage"): "u1",
    ("torch", "BoolStorage"): "?",
}
_ORDERED_DICT = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_MARK = object()


class _Global(NamedTuple):
    module: str
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Returns the tensors of a dictionary that torch.save wrote, by name.

    Tensors that share a storage in the file share their memory here.

    Args:
      path: the file, in the legacy format.

    Raises:
      UserError: it cannot be read, is of another format, is damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: correct the path of the weights (config.model.weights).")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    if content.startswith(_ZIP):
        raise UserError(
            f"{path} is in the zip format of torch.save, which is not read here: save it again with "
            "torch.save(..., _use_new_zipfile_serialization=False)."
        )
    try:
        return _read(content)
    except (_Refused, ValueError) as error:  # ValueError: what the standard library finds wrong
        reason = ascii(str(error))[1:-1][:200]  # it may quote the file, which could hold anything
        raise UserError(
            f"{path} is not a legacy PyTorch file of tensors, or is damaged: {reason}. Fetch it again."
        ) from None


class _Refused(Exception):
    """What is wrong with the file."""


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Refused(otherwise)


def _read(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    _require(_is(_Interpreter(file).load(), MAGIC), "it does not begin with PyTorch's magic number")
    _require(_is(_Interpreter(file).load(), VERSION), f"its version is not {VERSION}")
    machine = _Interpreter(file).load()
    _require(isinstance(machine, dict), "it says nothing about the machine that wrote it")
    _require(machine.get("little_endian") is True, "it was written on a big-endian machine")
    pickle = _Interpreter(file)
    tensors = pickle.load()
    _require(isinstance(tensors, dict), "its object is no dictionary")
    for name, tensor in tensors.items():
        _require(isinstance(tensor, _Tensor), f"{name[:80]} is no tensor")
    arrays = _read_storages(file, _Interpreter(file).load(), pickle.storages)
    return {name: _view(name, tensor, arrays) for name, tensor in tensors.items()}


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _read_storages(file: io.BytesIO, keys: Any, storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    _require(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "its storages have no list")
    _require(sorted(keys) == sorted(storages), "its storages are not those of its tensors")
    content, arrays = file.getbuffer(), {}
    for key in keys:
        _, dtype, count = storages[key]
        stored = int.from_bytes(file.read(8), "little", signed=True)
        _require(stored == count, f"a storage of {count} elements has {stored} in the file")
        start, length = file.tell(), count * np.dtype(dtype).itemsize
        _require(start + length <= len(content), f"it ends within a storage of {count} elements")
        # The copy is aligned, which the file is not.
        arrays[key] = np.frombuffer(content, dtype, count, start).copy()
        file.seek(length, io.SEEK_CUR)
    _require(file.tell() == len(content), "it goes on after its last storage")
    return arrays


def _view(name: str, tensor: _Tensor, arrays: dict[str, np.ndarray]) -> np.ndarray:
    storage, offset, size, stride = tensor
    array, elements = arrays[storage.key], math.prod(size)
    # A stride of 0 would make an array of any size out of one element.
    _require(elements <= storage.count, f"{name[:80]} has more elements than its storage")
    if not elements:
        return np.empty(size, array.dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    _require(last < storage.count, f"{name[:80]} reaches beyond its storage")
    strides = tuple(step * array.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(array[offset:], size, strides)


class _Interpreter:
    """An interpreter of one pickle.

    Attributes:
      storages: those that the pickle refers to, by key.
    """

    def __init__(self, file: io.BytesIO):
        self.storages: dict[str, _Storage] = {}
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Runs the pickle and returns its object; the file is then at the byte after it."""
        for opcode, argument, _ in pickletools.genops(self._file):
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _NEW:
                self._stack.append(_NEW[opcode.name]())
            else:
                instruction = _INSTRUCTIONS.get(opcode.name)
                _require(instruction is not None, f"it asks for {opcode.name}, which no file of tensors needs")
                instruction(self, argument)
        value = self._pop()
        _require(not self._stack, "a pickle leaves something behind")
        return value

    def _pop(self) -> Any:
        _require(bool(self._stack) and self._stack[-1] is not _MARK, "a pickle takes what it never made")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        _require(bool(self._stack), "a pickle closes what it never opened")
        self._stack.pop()
        return values[::-1]

    def _remember(self, index: int | None) -> None:
        value = self._pop()
        self._memo[len(self._memo) if index is None else index] = value
        self._stack.append(value)

    def _recall(self, index: int) -> None:
        _require(index in self._memo, "a pickle recalls what it never stored")
        self._stack.append(self._memo[index])

    def _make_tuple(self, length: int | None) -> None:
        values = self._pop_to_mark() if length is None else [self._pop() for _ in range(length)][::-1]
        self._stack.append(tuple(values))

    def _extend(self, values: list[Any]) -> None:
        _require(bool(self._stack) and type(self._stack[-1]) is list, "a pickle appends to what is no list")
        self._stack[-1].extend(values)

    def _update(self, values: list[Any]) -> None:
        _require(bool(self._stack) and type(self._stack[-1]) is dict, "a pickle sets items of what is no dictionary")
        keys = values[::2]
        _require(len(values) % 2 == 0, "a pickle has a key without a value")
        # A key is hashed, which for a nest of tuples can take for ever.
        _require(all(type(key) is str for key in keys), "a dictionary has a key that is no name")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _find(self, module: Any, name: Any) -> None:
        _require(type(module) is str and type(name) is str, "a pickle asks for something without a name")
        known = (module, name) in _STORAGES or (module, name) in (_ORDERED_DICT, _TENSOR)
        _require(known, f"it asks for {module[:80]}.{name[:80]}, which is refused")
        self._stack.append(_Global(module, name))

    def _call(self, _) -> None:
        arguments, function = self._pop(), self._pop()
        _require(type(function) is _Global and type(arguments) is tuple, "a pickle calls what is no function")
        if function == _ORDERED_DICT:
            _require(arguments == (), "an OrderedDict has arguments")
            self._stack.append({})
        else:
            _require(function == _TENSOR, f"it calls {function.module}.{function.name}, which is refused")
            self._stack.append(_make_tensor(arguments))

    def _build(self, _) -> None:
        """Drops the attributes of a dictionary: torch writes versions of modules there."""
        state = self._pop()
        _require(
            type(state) is dict and bool(self._stack) and type(self._stack[-1]) is dict, "a pickle changes an object"
        )

    def _refer(self, _) -> None:
        reference = self._pop()
        valid = type(reference) is tuple and len(reference) == 6 and reference[0] == "storage"
        _require(valid, "a reference to a storage is none")
        _, kind, key, _, count, view = reference
        valid = type(kind) is _Global and type(key) is str and _is_count(count) and view is None
        _require(valid, "a reference to a storage is none")
        _require(kind in _STORAGES, f"it has a storage of {kind.module}.{kind.name}, which is refused")
        storage = _Storage(key, _STORAGES[kind], count)
        _require(self.storages.setdefault(key, storage) == storage, "a storage is described in two ways")
        self._stack.append(storage)


_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"}
_LITERALS |= {"SHORT_BINSTRING"}
_NEW = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_INSTRUCTIONS: dict[str, Callable[[_Interpreter, Any], None]] = {
    "PROTO": lambda self, _: None,
    "FRAME": lambda self, _: None,
    "STOP": lambda self, _: None,
    "BINPUT": _Interpreter._remember,
    "LONG_BINPUT": _Interpreter._remember,
    "MEMOIZE": _Interpreter._remember,
    "BINGET": _Interpreter._recall,
    "LONG_BINGET": _Interpreter._recall,
    "TUPLE": lambda self, _: self._make_tuple(None),
    "TUPLE1": lambda self, _: self._make_tuple(1),
    "TUPLE2": lambda self, _: self._make_tuple(2),
    "TUPLE3": lambda self, _: self._make_tuple(3),
    "APPEND": lambda self, _: self._extend([self._pop()]),
    "APPENDS": lambda self, _: self._extend(self._pop_to_mark()),
    "SETITEM": lambda self, _: self._update([self._pop(), self._pop()][::-1]),
    "SETITEMS": lambda self, _: self._update(self._pop_to_mark()),
    "GLOBAL": lambda self, argument: self._find(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda self, _: self._find(*[self._pop(), self._pop()][::-1]),
    "REDUCE": _Interpreter._call,
    "BUILD": _Interpreter._build,
    "BINPERSID": _Interpreter._refer,
}


def _make_tensor(arguments: tuple) -> _Tensor:
    _require(len(arguments) in (6, 7), "a tensor is described wrongly")
    storage, offset, size, stride = arguments[:4]  # then what only training needs
    valid = type(storage) is _Storage and _is_count(offset) and type(size) is tuple and type(stride) is tuple
    valid = valid and len(size) == len(stride) <= _MOST_AXES and all(map(_is_count, size + stride))
    _require(valid, "a tensor is described wrongly")
    return _Tensor(storage, offset, size, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
