"""Checks that an exported program does only what a network needs, before it is compiled.

A program of `jax.export` is code: XLA's custom calls reach functions of the process, and loops can run forever. A file
from a stranger is therefore run only if all its operations are in `OPERATIONS`, which compute arrays from arrays
without loops, and all its custom calls in `CUSTOM_CALLS`.
"""

import re
from collections.abc import Sequence

import jax.numpy as jnp
from jax import export

from cnn_jax.utils import text

OPERATIONS = {
    "abs", "add", "and", "broadcast", "broadcast_in_dim", "case", "cbrt", "ceil", "clamp", "compare", "concatenate",
    "constant", "convert", "convolution", "cosine", "custom_call", "divide", "dot_general",
    "dynamic_broadcast_in_dim", "dynamic_conv", "dynamic_gather", "dynamic_iota", "dynamic_pad", "dynamic_reshape",
    "dynamic_slice", "exponential", "exponential_minus_one", "floor", "gather", "get_dimension_size", "iota",
    "is_finite", "log", "log_plus_one", "logistic", "maximum", "minimum", "multiply", "negate", "not",
    "optimization_barrier", "or", "pad", "power", "real_dynamic_slice", "reduce", "reduce_precision",
    "reduce_window", "remainder", "reshape", "return", "reverse", "round_nearest_afz", "round_nearest_even",
    "rsqrt", "select", "sign", "sine", "slice", "sqrt", "subtract", "tanh", "transpose", "xor",
}  # fmt: skip
CUSTOM_CALLS = {"shape_assertion"}  # that sizes are what the program was exported for


MOST_LINES = 1_000_000  # with every call written out; InceptionResNetV2 has some 10,000
MOST_BYTES = 2**31  # of temporary memory
BYTES_PER_IMAGE = 2**28  # in addition

# In the text of a module, an operation is a bare name, or a quoted one at the beginning of a line or after an equals
# sign. MLIR escapes quotation marks and line breaks within strings and quotes odd symbols, so none can hide one.
_ARRAY = re.compile('"0x[0-9A-F]*+"')
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_QUOTED = re.compile(r'(?:^|=) *"([^"]*)"\(', re.MULTILINE)
_DOTTED = re.compile(r"(?<![\w.$#!%@])[a-zA-Z_]\w*\.[a-zA-Z_][\w.$]*+(?! = )")  # not names of attributes
_SYMBOL = r'@([\w$.-]+|"[^"]*")'
_ALLOWED = {f"stablehlo.{name}" for name in OPERATIONS} | {"func.func", "func.call", "func.return"}


class Refused(Exception):
    """Why a program is not run."""


def check(exported: export.Exported, input_size: Sequence[int], classes: int) -> None:
    """Raises `Refused` where an exported program does anything that a network does not need.

    Args:
      exported: a function from uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`.
      input_size: height and width.
      classes: the number of classes.
    """
    _check_signature(exported, tuple(input_size), classes)
    check_module(exported.mlir_module())


def check_module(module: str) -> None:
    """Raises `Refused` where the text of a StableHLO module has an operation that is not allowed.

    Args:
      module: as MLIR prints it.
    """
    module = _ARRAY.sub('""', module)  # first, because they are most of the text
    bare = _STRING.sub('""', module)
    wrong = (set(_QUOTED.findall(module)) | set(_DOTTED.findall(bare))) - _ALLOWED
    if wrong:
        raise Refused(f"its program has the operation {text.printable(min(wrong))[:80]}")
    call = re.compile(rf"stablehlo\.custom_call {_SYMBOL}\(")
    unknown = set(call.findall(module)) - CUSTOM_CALLS
    if unknown or module.count("stablehlo.custom_call") != len(call.findall(bare)):
        names = text.printable(", ".join(sorted(unknown)))[:80] or "in another form"
        raise Refused(f"its program makes a custom call ({names}), which can reach any function of the process")
    _check_size(bare)


def _check_signature(exported: export.Exported, input_size: tuple[int, ...], classes: int) -> None:
    inputs, outputs = exported.in_avals, exported.out_avals
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0].dtype == jnp.uint8
        and tuple(inputs[0].shape[1:]) == (*input_size, 3)
        and outputs[0].dtype == jnp.float32
        and tuple(outputs[0].shape[1:]) == (classes,)
        and inputs[0].shape[:1] == outputs[0].shape[:1]
    )
    if not fits:
        raise Refused("its program does not take images to one probability per class")
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        raise Refused("its program has side effects, or needs several devices")


def _check_size(module: str) -> None:
    """Bounds the number of lines with every call written out, and refuses recursion."""
    sizes, calls = {}, {}
    for function in re.split(r"\bfunc\.func\b", module)[1:]:
        name = re.search(_SYMBOL, function)
        if name is None or name[1] in sizes:
            raise Refused("its functions have no names")
        sizes[name[1]] = function.count("\n")
        calls[name[1]] = re.findall(rf"\bcall {_SYMBOL}", function)
    total: dict[str, int] = {}
    active: set[str] = set()

    def count(name: str) -> int:
        if name not in total:
            if name in active or name not in sizes or len(active) > 200:
                raise Refused("its functions call each other without end")
            active.add(name)
            total[name] = sizes[name] + sum(count(callee) for callee in calls[name])
            active.discard(name)
        return total[name]

    if max(map(count, sizes), default=0) > MOST_LINES:
        raise Refused(f"its program has more than {MOST_LINES:,} operations")
