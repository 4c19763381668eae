"""Reader of files that torch.save wrote before PyTorch 1.6 (".pth"), without PyTorch and without unpickling.

Such a file is a sequence of pickles: a magic number, the version, facts about the machine, the object, whose tensors
refer to storages by key, and the list of those keys. Then follow, per key, a count (int64) and that many raw elements.
A pickle is a program, and Python's own reader would run arbitrary code. The interpreter here supports only the few
instructions that a dictionary of tensors needs, and can construct nothing else.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_jax.errors import UserError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\x03\x04"
_MOST_AXES = 32
_MOST_INSTRUCTIONS = 200_000  # of a pickle; the published weights of EfficientNet-Lite0 take some 10,000
_MOST_BYTES = 2**33
# Element types of torch's storage classes, little-endian.
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

    Tensors that share a storage in the file share memory here.

    Args:
      path: the file, in the legacy format.

    Raises:
      UserError: it cannot be read, has another format, is damaged, or contains anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: correct the path of the weights (config.model.weights).")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has more than {_MOST_BYTES >> 30} GiB: it is not a file of weights.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    if content.startswith(_ZIP):
        raise UserError(
            f"{path} is in the zip format of torch.save, which is not supported: save it again with "
            "torch.save(..., _use_new_zipfile_serialization=False)."
        )
    try:
        return _read(content)
    except (_Refused, ValueError) as error:  # ValueError: raised by the standard library
        reason = ascii(str(error))[1:-1][:200]  # it may quote arbitrary content of the file
        raise UserError(
            f"{path} is not a legacy PyTorch file of tensors, or is damaged: {reason}. Download it again."
        ) from None


class _Refused(Exception):
    """The reason why the file is refused."""


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Refused(otherwise)


def _read(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    _require(_is(_Interpreter(file).load(), MAGIC), "it does not begin with PyTorch's magic number")
    _require(_is(_Interpreter(file).load(), VERSION), f"its version is not {VERSION}")
    machine = _Interpreter(file).load()
    _require(isinstance(machine, dict), "it does not describe the machine that wrote it")
    _require(machine.get("little_endian") is True, "it was written on a big-endian machine")
    interpreter = _Interpreter(file)
    tensors = interpreter.load()
    _require(isinstance(tensors, dict), "its object is not a dictionary")
    for name, tensor in tensors.items():
        _require(isinstance(tensor, _Tensor), f"{name[:80]} is not a tensor")
    arrays = _read_storages(file, content, _Interpreter(file).load(), interpreter.storages)
    return {name: _view(name, tensor, arrays) for name, tensor in tensors.items()}


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _read_storages(file: io.BytesIO, content: bytes, keys: Any, storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    _require(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "it has no list of storages")
    _require(sorted(keys) == sorted(storages), "its storages are not those of its tensors")
    arrays = {}
    for key in keys:
        _, dtype, count = storages[key]
        stored = int.from_bytes(file.read(8), "little", signed=True)
        _require(stored == count, f"a storage of {count} elements has {stored} in the file")
        start, length = file.tell(), count * np.dtype(dtype).itemsize
        _require(start + length <= len(content), f"it ends within a storage of {count} elements")
        # Copied, because the file's content is not aligned.
        arrays[key] = np.frombuffer(content, dtype, count, start).copy()
        file.seek(length, io.SEEK_CUR)
    _require(file.tell() == len(content), "it continues after its last storage")
    return arrays


def _view(name: str, tensor: _Tensor, arrays: dict[str, np.ndarray]) -> np.ndarray:
    storage, offset, size, stride = tensor
    array, elements = arrays[storage.key], math.prod(size)
    # With a stride of 0, one element would become an array of any size.
    _require(elements <= storage.count, f"{name[:80]} has more elements than its storage")
    if not elements:
        return np.empty(size, array.dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    _require(last < storage.count, f"{name[:80]} reaches beyond its storage")
    # The stride of an axis of length 1 is never used, and NumPy refuses those beyond its integers.
    strides = tuple(step * array.itemsize if length > 1 else 0 for length, step in zip(size, stride, strict=True))
    return np.lib.stride_tricks.as_strided(array[offset:], size, strides)


class _Interpreter:
    """An interpreter of one pickle.

    Attributes:
      storages: the storages that the pickle refers to, by key.
    """

    def __init__(self, file: io.BytesIO):
        self.storages: dict[str, _Storage] = {}
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Runs the pickle and returns its object; the file is then positioned after it."""
        for _ in range(_MOST_INSTRUCTIONS):
            if (opcode := self._take(1)) == pickle.STOP:
                break
            _require(opcode in _INSTRUCTIONS, f"it has the opcode {opcode!r}, which no file of tensors needs")
            _INSTRUCTIONS[opcode](self)
        else:
            raise _Refused(f"a pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
        value = self._pop()
        _require(not self._stack, "a pickle does not end with an empty stack")
        return value

    def _take(self, length: int) -> bytes:
        taken = self._file.read(length)
        _require(len(taken) == length, "it ends within a pickle")
        return taken

    def _take_line(self) -> str:
        line = self._file.readline()
        _require(line.endswith(b"\n"), "it ends within a pickle")
        return line[:-1].decode()

    def _take_count(self, length: int) -> int:
        return int.from_bytes(self._take(length), "little")

    def _push_number(self, layout: str) -> None:
        self._stack.extend(struct.unpack(layout, self._take(struct.calcsize(layout))))

    def _push_long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._take_count(1)), "little", signed=True))

    def _push_text(self, length: int) -> None:
        self._stack.append(self._take(self._take_count(length)).decode())

    def _pop(self) -> Any:
        _require(bool(self._stack) and self._stack[-1] is not _MARK, "a pickle takes a value from an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> tuple[Any, ...]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        _require(bool(self._stack), "a pickle has no mark where it needs one")
        self._stack.pop()
        return tuple(reversed(values))

    def _pop_many(self, length: int) -> tuple[Any, ...]:
        return tuple([self._pop() for _ in range(length)][::-1])

    def _remember(self, index: int) -> None:
        _require(bool(self._stack), "a pickle stores a value from an empty stack")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        _require(index in self._memo, "a pickle reads a value that it never stored")
        self._stack.append(self._memo[index])

    def _extend(self, values: tuple[Any, ...]) -> None:
        _require(bool(self._stack) and type(self._stack[-1]) is list, "a pickle appends to something other than a list")
        self._stack[-1].extend(values)

    def _update(self, values: tuple[Any, ...]) -> None:
        _require(
            bool(self._stack) and type(self._stack[-1]) is dict,
            "a pickle sets items of something other than a dictionary",
        )
        keys = values[::2]
        _require(len(values) % 2 == 0, "a pickle has a key without a value")
        # Hashing a deeply nested tuple can take practically forever.
        _require(all(type(key) is str for key in keys), "a dictionary has a key that is not a string")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _find(self, module: Any, name: Any) -> None:
        _require(type(module) is str and type(name) is str, "a pickle asks for something without a name")
        known = (module, name) in _STORAGES or (module, name) in (_ORDERED_DICT, _TENSOR)
        _require(known, f"it asks for {module[:80]}.{name[:80]}, which is refused")
        self._stack.append(_Global(module, name))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        _require(
            type(function) is _Global and type(arguments) is tuple, "a pickle calls something other than a function"
        )
        if function == _ORDERED_DICT:
            _require(arguments == (), "an OrderedDict has arguments")
            self._stack.append({})
        else:
            _require(function == _TENSOR, f"it calls {function.module}.{function.name}, which is refused")
            self._stack.append(_make_tensor(arguments))

    def _build(self) -> None:
        """Drops the attributes of a dictionary, in which torch stores versions of modules."""
        state = self._pop()
        _require(
            type(state) is dict and bool(self._stack) and type(self._stack[-1]) is dict, "a pickle changes an object"
        )

    def _refer(self) -> None:
        reference = self._pop()
        valid = type(reference) is tuple and len(reference) == 6 and reference[0] == "storage"
        _require(valid, "a reference to a storage is malformed")
        _, kind, key, _, count, view = reference
        valid = type(kind) is _Global and type(key) is str and _is_count(count) and view is None
        _require(valid, "a reference to a storage is malformed")
        _require(kind in _STORAGES, f"it has a storage of {kind.module}.{kind.name}, which is refused")
        storage = _Storage(key, _STORAGES[kind], count)
        _require(self.storages.setdefault(key, storage) == storage, "two references to a storage differ")
        self._stack.append(storage)


_INSTRUCTIONS: dict[bytes, Callable[[_Interpreter], Any]] = {
    pickle.PROTO: lambda self: self._take(1),
    pickle.FRAME: lambda self: self._take(8),
    pickle.MARK: lambda self: self._stack.append(_MARK),
    pickle.NONE: lambda self: self._stack.append(None),
    pickle.NEWTRUE: lambda self: self._stack.append(True),
    pickle.NEWFALSE: lambda self: self._stack.append(False),
    pickle.EMPTY_TUPLE: lambda self: self._stack.append(()),
    pickle.EMPTY_LIST: lambda self: self._stack.append([]),
    pickle.EMPTY_DICT: lambda self: self._stack.append({}),
    pickle.BININT: lambda self: self._push_number("<i"),
    pickle.BININT1: lambda self: self._push_number("<B"),
    pickle.BININT2: lambda self: self._push_number("<H"),
    pickle.BINFLOAT: lambda self: self._push_number(">d"),
    pickle.LONG1: _Interpreter._push_long,
    pickle.BINUNICODE: lambda self: self._push_text(4),
    pickle.SHORT_BINUNICODE: lambda self: self._push_text(1),
    pickle.BINSTRING: lambda self: self._push_text(4),
    pickle.SHORT_BINSTRING: lambda self: self._push_text(1),
    pickle.BINPUT: lambda self: self._remember(self._take_count(1)),
    pickle.LONG_BINPUT: lambda self: self._remember(self._take_count(4)),
    pickle.MEMOIZE: lambda self: self._remember(len(self._memo)),
    pickle.BINGET: lambda self: self._recall(self._take_count(1)),
    pickle.LONG_BINGET: lambda self: self._recall(self._take_count(4)),
    pickle.TUPLE: lambda self: self._stack.append(self._pop_to_mark()),
    pickle.TUPLE1: lambda self: self._stack.append(self._pop_many(1)),
    pickle.TUPLE2: lambda self: self._stack.append(self._pop_many(2)),
    pickle.TUPLE3: lambda self: self._stack.append(self._pop_many(3)),
    pickle.APPEND: lambda self: self._extend(self._pop_many(1)),
    pickle.APPENDS: lambda self: self._extend(self._pop_to_mark()),
    pickle.SETITEM: lambda self: self._update(self._pop_many(2)),
    pickle.SETITEMS: lambda self: self._update(self._pop_to_mark()),
    pickle.GLOBAL: lambda self: self._find(self._take_line(), self._take_line()),
    pickle.STACK_GLOBAL: lambda self: self._find(*self._pop_many(2)),
    pickle.REDUCE: _Interpreter._call,
    pickle.BUILD: _Interpreter._build,
    pickle.BINPERSID: _Interpreter._refer,
}


def _make_tensor(arguments: tuple) -> _Tensor:
    _require(len(arguments) in (6, 7), "a tensor is malformed")
    storage, offset, size, stride = arguments[:4]  # the others matter only for training
    valid = type(storage) is _Storage and _is_count(offset) and type(size) is tuple and type(stride) is tuple
    valid = valid and len(size) == len(stride) <= _MOST_AXES and all(map(_is_count, size + stride))
    _require(valid, "a tensor is malformed")
    return _Tensor(storage, offset, size, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
