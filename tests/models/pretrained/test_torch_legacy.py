"""Hand-written files in PyTorch's legacy format, valid and malicious."""

import os
import pickle
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.models.pretrained import torch_legacy

ARRAYS = {
    "layer.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "layer.bias": np.array([0.5, -1.5]),
    "count": np.array(7),
}
KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


# The opcodes of pickle's protocol 2.
def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def row(*items):
    return b"(" + b"".join(items) + b"t"


def called(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + row(*arguments) + b"R"


def storage(key="0", kind="FloatStorage", count=4):
    return row(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count), b"N") + b"Q"


def tensor(stored=None, offset=0, size=(2, 2), stride=(2, 1), extra=(b"\x89", b"}")):
    stored = storage() if stored is None else stored
    size, stride = row(*map(number, size)), row(*map(number, stride))
    return called("torch._utils", "_rebuild_tensor_v2", stored, number(offset), size, stride, *extra)


def dictionary(**items):
    pairs = b"".join(text(name) + value for name, value in items.items())
    return called("collections", "OrderedDict") + b"(" + pairs + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


def file_of(body, contents=None, magic=torch_legacy.MAGIC, version=torch_legacy.VERSION, little=b"\x88"):
    """A file with the given object; `contents` are the storages' elements by key, a float32 storage of 4 if None."""
    contents = {"0": np.arange(4, dtype=np.float32)} if contents is None else contents
    machine = b"}(" + text("protocol_version") + number(1001) + text("little_endian") + little + b"u"
    keys = b"](" + b"".join(map(text, contents)) + b"e"
    pickles = b"".join(map(program, (number(magic), number(version), machine, body, keys)))
    return pickles + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in contents.values())


def good_file():
    items = {
        name: tensor(
            storage(str(key), KINDS[array.dtype.name], array.size),
            size=array.shape,
            stride=[step // array.itemsize for step in array.strides],
        )
        for key, (name, array) in enumerate(ARRAYS.items())
    }
    # torch stores the versions of the modules as an attribute of the dictionary.
    attributes = b"}" + text("_metadata") + dictionary(layer=b"}" + text("version") + b"K\x01s") + b"sb"
    contents = {str(key): array.ravel() for key, array in enumerate(ARRAYS.values())}
    return file_of(dictionary(**items) + attributes, contents)


@pytest.fixture
def read(tmp_path):
    """Reads a file with the given content."""

    def call(content: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return torch_legacy.read(path)

    return call


def assert_same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_reads_what_was_written(read):
    assert_same(read(good_file()), ARRAYS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tensor(offset=1, size=(3,), stride=(1,)), [1, 2, 3]),
        (tensor(stride=(1, 2)), [[0, 2], [1, 3]]),
        (tensor(size=(2, 2), stride=(0, 3)), [[0, 3], [0, 3]]),
        (tensor(size=(), stride=(), offset=3), 3),
        (tensor(size=(1, 2), stride=(2**62, 1), offset=2), [[2, 3]]),  # the stride of one element is never used
        (tensor(size=(0, 7), stride=(7, 1)), np.zeros((0, 7))),
        (tensor(extra=(b"\x88", b"}", b"}")), [[0, 1], [2, 3]]),
    ],
)
def test_reads_views_of_a_storage(read, given, expected):
    assert_same(read(file_of(dictionary(a=given))), {"a": np.array(expected, np.float32)})


def test_tensors_share_a_storage(read):
    arrays = read(file_of(dictionary(a=tensor(), b=tensor(size=(1,), stride=(1,), offset=2))))
    assert np.shares_memory(arrays["a"], arrays["b"])


class Attack:
    """Is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["first", "object", "tensor", "argument"])
def test_executes_nothing(read, tmp_path, protocol, place):
    executed = tmp_path / "executed"
    attacks = {
        "system": Attack(os.system, f"touch {executed}"),
        "eval": Attack(eval, f"open({str(executed)!r}, 'w')"),
        "getattr": Attack(getattr, Attack(__import__, "os"), "system"),
        "open": Attack(open, str(executed), "w"),
    }
    for name, attack in attacks.items():
        pickled = pickle.dumps(attack, protocol)
        body = pickled[2 if protocol > 1 else 0 : -1]
        content = {
            "first": pickled,
            "object": file_of(body),
            "tensor": file_of(dictionary(a=body)),
            "argument": file_of(dictionary(a=tensor(body))),
        }[place]
        with pytest.raises(UserError, match=rf"asks for \w+\.({name}|__import__), which is refused"):
            read(content)
        assert not executed.exists()
    pickle.loads(pickle.dumps(attacks["open"])).close()
    assert executed.exists()  # it would have been


NAN = b"G" + struct.pack(">d", float("nan"))
REFUSED = {
    "another torch function": called("torch._utils", "_rebuild_qtensor"),
    "a module of a known name": called("torch.FloatStorage", "fromfile"),
    "an attribute of a known name": called("collections", "OrderedDict.fromkeys"),
    "a storage type we do not know": tensor(storage(kind="BFloat16Storage")),
    "a storage type called": called("torch", "FloatStorage", number(2**40)),
    "a dictionary with arguments": called("collections", "OrderedDict", b"]"),
    "no arguments at all": b"ccollections\nOrderedDict\nNR",
    "too few arguments": called("torch._utils", "_rebuild_tensor_v2", storage()),
    "too many arguments": tensor(extra=(b"N",) * 4),
    "no storage": tensor(b"N"),
    "a negative offset": tensor(offset=-1),
    "a negative size": tensor(size=(-2, -2)),
    "a negative stride": tensor(stride=(-2, 1)),
    "a size of another length": tensor(size=(2,)),
    "a size that is no number": called(
        "torch._utils", "_rebuild_tensor_v2", storage(), number(0), row(NAN), row(number(1)), b"\x89", b"}"
    ),
    "a size that is a truth": called(
        "torch._utils", "_rebuild_tensor_v2", storage(), number(0), row(b"\x88"), row(number(1)), b"\x89", b"}"
    ),
    "an offset beyond": tensor(offset=1),
    "an offset far beyond": tensor(offset=2**63),
    "a stride beyond": tensor(stride=(3, 1)),
    "a stride far beyond": tensor(stride=(2**63, 1)),
    "a size beyond": tensor(size=(2, 3), stride=(1, 1)),
    "a size out of nothing": tensor(size=(2**31, 2**31), stride=(0, 0)),
    "an empty size that overflows": tensor(size=(0, 2**63), stride=(1, 1)),
    "too many axes": tensor(size=(1,) * 65, stride=(1,) * 65),
    "a huge storage": tensor(storage(count=2**62)),
    "a negative storage": tensor(storage(count=-4)),
    "another count than stored": tensor(storage(count=3), size=(1,), stride=(1,)),
    "a storage without content": dictionary(a=tensor(storage("1"))),
    "a storage of two types": dictionary(a=tensor(), b=tensor(storage(kind="LongStorage"))),
    "a view of a storage": tensor(storage()[:-3] + text("v") + b"tQ"),
    "a reference to no storage": row(text("module"), b"N", b"N", b"N", b"N", b"N") + b"Q",
    "a reference by text": b"P0\n",
    "a number": number(1),
    "a list": b"]",
    "a tensor that is a number": dictionary(a=number(1)),
    "a key that is a number": b"}K\x01Ns",
    "a key without a value": b"}(" + text("a") + b"u",
    "items of a list": b"](" + text("a") + b"Nu",
    "an attribute of a tensor": dictionary(a=tensor() + b"}b"),
    "an object by its class": b"(ccollections\nOrderedDict\no",
    "an instance": b"(icollections\nOrderedDict\n",
    "a new object": b"ccollections\nOrderedDict\n)\x81",
    "an extension": b"\x82\x01",
    "what was never stored": b"h\x07",
    "what was never pushed": b"R",
    "what was never opened": b"t",
    "more than one object": b"NN",
    "a mark": b"(",
    "an unknown opcode": b"\xff",
    "a place in memory far away": b"Nr\xff\xff\xff\xff" + b"R",
    "a string far too long": b"\x8d" + struct.pack("<Q", 2**60) + b"x",
    "an array far too long": b"\x96" + struct.pack("<Q", 2**60) + b"x",
    "a number far too long": b"\x8b" + struct.pack("<I", 2**31 - 1) + b"x",
    # The hash of this key would take 2^60 steps.
    "a key that is a nest": b"}N" + b"2\x86" * 60 + b"Ns",
    "tuples in tuples as a key": b"})" + b"\x85" * 3_000 + b"Ns",
    "lists in lists": b"]" * 3_000 + b"a" * 2_999,
    "a name with escape codes": b"c\x1b[2J\x07\nsystem\n)R",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_refuses(read, body):
    tensors = body.startswith(b"ctorch._utils\n_rebuild_tensor_v2")
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read(file_of(dictionary(a=body) if tensors else body))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()  # one line, without escape sequences
    assert len(str(caught.value)) < 600


def good_with(**changes):
    return file_of(dictionary(a=tensor()), **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04" + bytes(100), "zip format.*_use_new_zipfile_serialization=False"),
        (good_with(magic=1), "magic number"),
        (good_with(version=1002), "version is not 1001"),
        (good_with(little=b"\x89"), "big-endian"),
        (good_with() + b"\0", "continues after its last storage"),
        (good_with()[:-1], "ends within a storage of 4 elements"),
        (good_with(contents={}), "not those of its tensors"),
        (good_with(contents={"0": np.zeros(4, np.float32), "1": np.zeros(1)}), "not those of its tensors"),
        (good_with(contents={"0": np.zeros(3, np.float32)}), "storage of 4 elements has 3 in the file"),
    ],
)
def test_says_what_is_wrong(read, content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_megabytes_of_nested_tuples_are_refused_at_once(read):
    start = time.process_time()
    with pytest.raises(UserError, match=r"a pickle has more than 200,000 instructions"):
        read(file_of(b")" + b"\x85" * 3_000_000))
    assert time.process_time() - start < 10


def test_a_missing_file_is_one_clear_line(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(UserError, match="There is no file"):
            torch_legacy.read(path)


def test_truncation_is_noticed(read):
    content = good_file()
    for length in range(0, len(content), 2):
        with pytest.raises(UserError):
            read(content[:length])


def test_damage_is_an_error_or_harmless(read):
    content, refused = good_file(), 0
    generator = random.Random(0)
    tracemalloc.start()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 1, 2, 5))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            arrays = read(bytes(damaged))
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert all(array.nbytes <= len(content) for array in arrays.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert refused > 150


def test_agrees_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(6, 5, 4, generator=generator)
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    kinds = (torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    state = layer.state_dict()
    state |= {"a": base, "slice": base[1:4, ::2], "turned": base.transpose(0, 2), "scalar": base[2, 3, 1]}
    state |= {"empty": torch.empty(0, 3), "expanded": base[:1, :1, :1].expand(3, 1, 4)}
    state |= {str(kind): (base * 9).to(kind) for kind in kinds}
    path = tmp_path / "torch.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(torch_legacy.read(path), {name: value.numpy() for name, value in torch.load(path).items()})
    torch.save(state, path)
    with pytest.raises(UserError, match="zip format"):
        torch_legacy.read(path)
