"""Reads what XLA compiled for a GPU: optimized HLO, and the sequence of what is launched.

Pure functions of text. `parse` reads the HLO of a program, `Module.loops` finds its loops, `problems` what must not be
in them, and `cost` the bytes and floating-point operations of a trip. `launches` reads the file
`*.thunk_sequence*.txt` that `--xla_dump_to=FOLDER` leaves.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16} | {f"{k}{n}": n // 8 for k in "fsu" for n in (8, 16, 32, 64)}
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+(?:e\d\w+)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)|\b(?:branch|called)_computations=\{([^}]*)\}")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_HOST = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done")
# What launches nothing.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "copy-done", "all-reduce-done", "all-gather-done", "async-done", "collective-permute-done",
}  # fmt: skip


class Array(NamedTuple):
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * _BYTES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: of its result.
      root: whether its result is that of the computation.
      arrays: the types of its result: several where it is a tuple.
      opcode: what it does.
      operands: names of instructions.
      text: what follows the operands: attributes.
      result: the text of its type.
    """

    name: str
    root: bool
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str
    result: str

    @property
    def target(self) -> str:
        """Which library function a custom call calls; "" for others."""
        found = re.search(r'custom_call_target="([^"]+)"', self.text)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        names = (one or several for one, several in _CALLED.findall(self.text))
        return [name.strip().lstrip("%") for each in names for name in each.split(",")]

    @property
    def nbytes(self) -> int:
        """The bytes of its result."""
        return sum(array.nbytes for array in self.arrays)


class Loop(NamedTuple):
    """A `while` instruction.

    Attributes:
      body: the name of the computation that a trip runs.
      trips: how many trips there are; None where XLA does not know.
      inside: the body of the loop that it is in; "" for none.
    """

    body: str
    trips: int | None
    inside: str


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      header: its first line.
      computations: instructions by the name of the computation, in order.
      entry: the name of the computation that is run.
    """

    header: str
    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def by_name(self) -> dict[str, dict[str, Instruction]]:
        """The instructions of each computation by name."""
        return {name: {each.name: each for each in body} for name, body in self.computations.items()}

    def loops(self) -> list[Loop]:
        """Returns the loops, outer ones first."""
        return list(self._loops(self.entry, ""))

    def _loops(self, computation: str, inside: str) -> Iterator[Loop]:
        for each in self.computations[computation]:
            if each.opcode == "while":
                body = re.search(r"\bbody=%?([\w.\-]+)", each.text)
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', each.text)
                assert body
                yield Loop(body[1], int(trips[1]) if trips else None, inside)
                yield from self._loops(body[1], body[1])
            elif each.opcode in ("call", "conditional", "async-start"):
                for name in each.called:
                    yield from self._loops(name, inside)

    def reached(self, computation: str) -> list[str]:
        """Returns a computation and all that it calls, directly or not."""
        found, pending = [], [computation]
        while pending:
            name = pending.pop()
            if name not in found and name in self.computations:
                found.append(name)
                pending += [called for each in self.computations[name] for called in each.called]
        return found

    def not_aliased(self) -> list[int]:
        """Returns the outputs that have no buffer of an argument: where all are donated, they are copies."""
        *_, root = (each for each in self.computations[self.entry] if each.root)
        start = self.header.find("input_output_alias={")
        end = self.header.find("entry_computation_layout", start)
        held = self.header[start : end if end > start else None] if start >= 0 else ""
        aliased = {int(index or 0) for index in re.findall(r"\{(\d*)\}: \(", held)}
        return [index for index in range(len(root.arrays)) if index not in aliased]


def parse(text: str) -> Module:
    """Reads the text of a compiled program (`jax.stages.Compiled.as_text`)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current, header = "", None, ""
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{", line)
        if line.startswith("HloModule"):
            header = line
        elif start and not line.startswith(" "):
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction:
                current.append(instruction)
    return Module(header, computations, entry)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(_COMMENT.sub("", line))
    if not found:
        return None
    root, name, result, opcode, rest = found.groups()
    depth = 1
    for end, character in enumerate(rest):  # noqa: B007
        depth += (character == "(") - (character == ")")
        if not depth:
            break
    operands, text = rest[:end], rest[end + 1 :]
    names = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%?([\w.\-]+)(?:,|$)", operands))
    return Instruction(name, bool(root), arrays(result), opcode, names, text, result)


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays that a type names: several of a tuple."""
    return tuple(
        Array(dtype, tuple(int(side) for side in shape.split(",") if side), layout or "")
        for dtype, shape, layout in _ARRAY.findall(text)
    )


def problems(module: Module) -> list[str]:
    """Returns what a program does that a loop of training must not do; empty if all is well.

    Each is one line: transfers between host and device, callbacks into Python, float64, scatters, conditionals,
    kernels or activations that are transposed for a convolution, and floating-point arrays gathered from all devices.
    Those that are sharded on purpose, such as images, are integers.
    """
    found: dict[str, None] = {}
    for loop in module.loops():
        for computation in module.reached(loop.body):
            for each in module.computations[computation]:
                for what in _problems(module, computation, each):
                    found[f"{what} in loop {loop.body}: {each.name} = {each.result[:80]} {each.opcode}"] = None
    return list(found)


def _problems(module: Module, computation: str, each: Instruction) -> Iterator[str]:
    to_host = "S(5)" in each.result or each.target in ("MoveToHost", "MoveToDevice", "annotate_device_placement")
    if each.opcode in _HOST or to_host:
        yield "a transfer between host and device"
    if "callback" in each.target:
        yield "a callback into Python"
    if any(array.dtype in ("f64", "c128") for array in each.arrays):
        yield "float64"
    if each.opcode in ("scatter", "select-and-scatter"):
        yield "a scatter"
    if each.opcode == "conditional":
        yield "a conditional"
    if is_convolution(each) and any(_is_transposed(module, computation, name) for name in each.operands[:2]):
        yield "an operand that is transposed for a convolution"
    gathered = each.opcode in ("all-gather", "all-gather-start")
    if gathered and any(array.dtype[0] in "fb" and array.size > 1 for array in each.arrays):
        yield "an all-gather of floating-point numbers"


def is_convolution(each: Instruction) -> bool:
    """Whether an instruction is a convolution, of cuDNN or of XLA."""
    return each.opcode == "convolution" or each.target.startswith("__cudnn$conv")


def _is_transposed(module: Module, computation: str, name: str) -> bool:
    """Whether what an instruction returns has only been moved in memory, for its user."""
    each = module.by_name[computation].get(name)
    while each and each.opcode in ("bitcast", "get-tuple-element") and each.operands:
        each = module.by_name[computation].get(each.operands[0])
    if each is None or _are_images(each.arrays[0]):
        return False
    if each.opcode == "copy":  # XLA also copies to protect a buffer, without another layout
        source = module.by_name[computation].get(each.operands[0])
        return source is not None and source.arrays[:1] != each.arrays[:1]
    if each.opcode != "fusion":
        return each.opcode == "transpose"
    # A fusion that also computes would be needed without the transposition.
    inner = [one for called in each.called for one in module.computations.get(called, ())]
    moves = {"parameter", "bitcast", "copy", "transpose", "reshape", "tuple", "get-tuple-element"}
    return any(one.opcode in ("copy", "transpose") for one in inner) and all(one.opcode in moves for one in inner)


def _are_images(array: Array) -> bool:
    """Whether an array may be images of three channels: some GPUs take only these in another layout."""
    sides = sorted(array.shape)
    return len(sides) == 4 and sides[0] == 3 < sides[1]


class Cost(NamedTuple):
    """What one trip of a loop, or a program without its loops, costs.

    Attributes:
      kernels: instructions that launch something.
      cudnn: calls of cuDNN among them.
      nbytes: read and written, if every kernel reads its operands and writes its results once.
      flops: floating-point operations of convolutions and matrix products.
      collectives: bytes that a device sends, by kind.
    """

    kernels: int
    cudnn: int
    nbytes: int
    flops: int
    collectives: dict[str, int]


def cost(module: Module, computation: str) -> Cost:
    """Returns the cost of a computation; a loop in it counts as often as it has trips, once if that is unknown."""
    kernels = cudnn = nbytes = flops = 0
    collectives: collections.Counter[str] = collections.Counter()
    trips = {loop.body: loop.trips or 1 for loop in module.loops()}
    for each in module.computations[computation]:
        if each.opcode in _FREE:
            continue
        inner, times = None, 1
        if each.opcode == "while":
            body = next(name for name in each.called if name in trips)
            inner, times = cost(module, body), trips[body]
        elif each.opcode in ("call", "async-start"):
            inner = cost(module, each.called[0])
        if inner:
            kernels, cudnn = kernels + times * inner.kernels, cudnn + times * inner.cudnn
            nbytes, flops = nbytes + times * inner.nbytes, flops + times * inner.flops
            collectives.update({kind: times * size for kind, size in inner.collectives.items()})
            continue
        kernels += 1
        cudnn += each.target.startswith("__cudnn")
        nbytes += _bytes(module, computation, each)
        flops += _flops(module, computation, each)
        kind = each.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            collectives[kind] += sum(module.by_name[computation][name].nbytes for name in each.operands)
    return Cost(kernels, cudnn, nbytes, flops, dict(collectives))


def _bytes(module: Module, computation: str, each: Instruction) -> int:
    """Returns the bytes that an instruction reads and writes: of an array that it only takes slices of, these alone."""
    known = module.by_name[computation]
    whole = {name: known[name].nbytes for name in each.operands if name in known}
    if each.opcode in ("dynamic-slice", "gather"):
        return 2 * each.nbytes
    if each.opcode == "dynamic-update-slice":
        return 2 * whole.get(each.operands[1], 0)
    if each.opcode != "fusion" or not each.called or each.called[0] not in module.computations:
        return each.nbytes + sum(whole.values())
    inner = module.computations[each.called[0]]
    read = 0
    for parameter in (i for i in inner if i.opcode == "parameter"):
        users = [user for user in inner if parameter.name in user.operands]
        slices = all(u.opcode in ("dynamic-slice", "gather") and u.operands[0] == parameter.name for u in users)
        updated = all(u.opcode == "dynamic-update-slice" and u.operands[0] == parameter.name for u in users)
        if users and slices:
            read += sum(user.nbytes for user in users)
        elif not (users and updated):
            read += parameter.nbytes
    written = 0
    names = {i.name: i for i in inner}
    (root,) = (i for i in inner if i.root)
    for result in [names[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        in_place = result.opcode == "dynamic-update-slice"
        written += names[result.operands[1]].nbytes if in_place else result.nbytes
    return read + written


def _flops(module: Module, computation: str, each: Instruction) -> int:
    """Returns the multiplications and additions of convolutions and matrix products, of which a fusion may have one."""
    known = module.by_name[computation]
    if each.opcode == "fusion":
        return sum(_flops(module, name, inner) for name in each.called for inner in module.computations.get(name, ()))
    if is_convolution(each):
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
        assert labels
        operands = [known[name].arrays[0] for name in each.operands[:2]]
        result = each.arrays[0]
        # The kernel, and the array with a value per output of the forward pass.
        if "BackwardFilter" in each.target:
            kernel, outputs = result, operands[1]
        elif "BackwardInput" in each.target:
            kernel, outputs = operands[1], operands[0]
        else:
            kernel, outputs = operands[1], result
        return 2 * outputs.size * kernel.size // kernel.shape[labels[2].index("o")]
    if each.opcode == "dot" or each.target.startswith("__cublas"):
        contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)', each.text)
        sides = [int(side) for side in re.findall(r"\d+", contracted[1])] if contracted else []
        left = known[each.operands[0]].arrays[0].shape
        return 2 * each.arrays[0].size * math.prod(left[side] for side in sides)
    return 0


class Launches(NamedTuple):
    """What the host launches.

    Attributes:
      kernels: on the device, those of graphs included.
      graphs: CUDA graphs that the host launches.
      loose: kernels and library calls that it launches one by one.
    """

    kernels: int
    graphs: int
    loose: int


class Sequence(NamedTuple):
    """The launches of a program.

    Attributes:
      trip: of one trip of the longest loop; of the whole program if it has none.
      once: of everything around it. Where the loop is part of a graph, that graph is launched here, and none in a trip.
    """

    trip: Launches
    once: Launches


_THUNK = re.compile(r"( *)\d+: (k\w+)")


def launches(text: str) -> Sequence:
    """Reads a file `*.thunk_sequence*.txt`: a line per thunk, indented by what contains it."""
    found: list[tuple[str, bool, bool]] = []  # kind, whether in a graph, whether in the body of the outermost loop
    graphs: list[int] = []  # indentation of the graphs and loops that contain a line
    loops: list[int] = []
    for line in text.splitlines():
        match = _THUNK.match(line)
        if not match:
            continue
        indent, kind = len(match[1]), match[2]
        graphs = [each for each in graphs if each < indent]
        loops = [each for each in loops if each < indent]
        found.append((kind, bool(graphs), bool(loops)))
        if kind == "kCommandBuffer":
            graphs.append(indent)
        if kind == "kWhile":
            loops.append(indent)
    looped = any(in_loop for *_, in_loop in found)

    def count(chosen: list[tuple[str, bool]]) -> Launches:
        leaves = [(kind, in_graph) for kind, in_graph in chosen if kind not in ("kCommandBuffer", "kWhile")]
        outer = sum(kind == "kCommandBuffer" and not in_graph for kind, in_graph in chosen)
        return Launches(len(leaves), outer, sum(not in_graph for _, in_graph in leaves))

    trip = count([(kind, in_graph) for kind, in_graph, in_loop in found if in_loop or not looped])
    once = count([(kind, in_graph) for kind, in_graph, in_loop in found if looped and not in_loop])
    return Sequence(trip, once)
