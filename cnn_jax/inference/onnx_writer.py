"""Translates a network's function to ONNX, operation by operation.

The function is traced by `jax.make_jaxpr`. Operations on constants, such as the folding of BatchNorm's statistics and
the weights of a resize, are computed while the file is written; the others are translated by the functions below. Where
an operation is chosen by platform, the one for accelerators is taken: it is the plain form, and the one for CPUs a
faster equivalent in terms of many others.

Shapes are static in the trace except for the batch, which is traced with the size `_BATCH`, a prime that occurs nowhere
else. Its multiples are batches, too: test-time augmentation concatenates its views.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.utils import files

OPSET = 17  # of 2022, which every current runtime reads
INPUT, OUTPUT = "images", "log_probabilities"

_BATCH = 7919
_IR_VERSION = 8


def write(
    path: Path, log_probabilities: Callable[[Any], Any], input_size: Sequence[int], metadata: dict[str, str]
) -> None:
    """Writes an ONNX file, atomically: `images`, uint8 `[batch, height, width, 3]`, to `log_probabilities`.

    Args:
      path: the file to write or replace.
      log_probabilities: a function from uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`.
      input_size: height and width.
      metadata: written to the file's properties.

    Raises:
      UserError: onnx is not installed, the network has an operation that is not translated, or the file cannot be
        written.
    """
    files.write_output(path, [convert(log_probabilities, input_size, metadata).SerializeToString()])


def convert(log_probabilities: Callable[[Any], Any], input_size: Sequence[int], metadata: dict[str, str]) -> Any:
    """Returns the `onnx.ModelProto`; see `write`."""
    onnx = _import()
    images = jax.ShapeDtypeStruct((_BATCH, *input_size, 3), jnp.uint8)
    closed = jax.make_jaxpr(log_probabilities)(images)
    graph = _Graph(onnx)
    output = graph.run(closed.jaxpr, closed.consts, [_Value(INPUT, images.shape, np.dtype(np.uint8))])[0]
    graph.add("Identity", [graph.full(output)], name=OUTPUT)
    helper, kinds = onnx.helper, onnx.TensorProto
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "cnn_jax",
            [helper.make_tensor_value_info(INPUT, kinds.UINT8, ["batch", *input_size, 3])],
            [helper.make_tensor_value_info(OUTPUT, kinds.FLOAT, ["batch", output.shape[1]])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cnn_jax",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


def _import() -> Any:
    try:
        import onnx  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UserError("Writing ONNX needs onnx: pip install 'cnn_jax[onnx]'.") from None
    return onnx


class _Value:
    """An output of a node.

    Attributes:
      name: in the graph. The tensor may have axes of size 1 where `shape` has more: ONNX broadcasts them, too.
      shape: as traced.
      dtype: its type.
      exact: whether the tensor has this shape.
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: np.dtype, exact: bool = True):
        self.name, self.shape, self.dtype, self.exact = name, tuple(shape), dtype, exact


class _Graph:
    """The nodes and constants written so far."""

    def __init__(self, onnx: Any):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._onnx = onnx
        self._batch = ""

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Translates the equations that the outputs depend on; values are arrays or `_Value`s."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else values[atom]

        needed = _needed(jaxpr)
        for equation, used in zip(jaxpr.eqns, needed, strict=True):
            if used:
                results = self._translate(equation, [read(atom) for atom in equation.invars])
                values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _translate(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        name, params = equation.primitive.name, equation.params
        shapes = [out.aval for out in equation.outvars]
        if name == "platform_index":
            return [np.int32(next(i for i, platforms in enumerate(params["platforms"]) if platforms is None))]
        if name == "cond":
            branch = params["branches"][int(inputs[0])]
            return self.run(branch.jaxpr, branch.consts, inputs[1:])
        if params.get("name") == "max_pool_2x2":  # of cnn_jax.models.ops.pool
            return [self._pool("MaxPool", inputs[0], shapes[0], (2, 2), (2, 2), ((0, 0), (0, 0)))]
        if (inner := params.get("jaxpr") or params.get("call_jaxpr")) is not None:
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            return self.run(jaxpr, consts, inputs)
        if name == "broadcast_in_dim" and any(map(_of_batch, shapes[0].shape)):
            return [_broadcast(self, inputs, params, shapes[0])]
        if not any(isinstance(each, _Value) for each in inputs):
            results = equation.primitive.bind(*map(jnp.asarray, inputs), **params)
            return results if equation.primitive.multiple_results else [results]
        if name in ("stop_gradient", "optimization_barrier", "copy"):
            return inputs
        handler = _HANDLERS.get(name)
        if handler is None:
            raise UserError(
                f"The network has the operation {name}, which is not translated to ONNX: choose --format=jaxexport or "
                "safetensors."
            )
        return [handler(self, inputs, params, shapes[0])]

    def add(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns its name."""
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Appends a constant and returns its name."""
        name = f"c{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value)).reshape(np.shape(value))
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def name(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of a value in the graph, which may have axes of size 1 where ONNX broadcasts them."""
        return value.name if isinstance(value, _Value) else self.constant(np.asarray(value, dtype))

    def full(self, value: Any) -> str:
        """Returns the name of a value with exactly its shape."""
        if not isinstance(value, _Value) or value.exact:
            return self.name(value)
        return self.add("Expand", [value.name, self.dimensions(value.shape)])

    def dimensions(self, shape: Sequence[int]) -> str:
        """Returns the name of a vector with the actual sizes of a traced shape."""
        if not any(_of_batch(size) for size in shape):
            return self.constant(np.array(shape, np.int64))
        if not self._batch:
            whole = self.add("Shape", [INPUT])
            self._batch = self.add("Gather", [whole, self.constant(np.array([0]))])
        parts = [
            self.add("Mul", [self._batch, self.constant(np.array([size // _BATCH]))])
            if _of_batch(size)
            else self.constant(np.array([size]))
            for size in shape
        ]
        return self.add("Concat", parts, axis=0)

    def value(self, name: str, aval: Any, exact: bool = True) -> _Value:
        """Returns the value of a node with the shape and type of an abstract value."""
        return _Value(name, aval.shape, np.dtype(aval.dtype), exact)

    def _pool(self, kind: str, image: Any, aval: Any, window: Any, strides: Any, padding: Any, **more: Any) -> _Value:
        channels_first = self.add("Transpose", [self.full(image)], perm=[0, 3, 1, 2])
        pads = [low for low, _ in padding] + [high for _, high in padding]
        pooled = self.add(kind, [channels_first], kernel_shape=window, strides=strides, pads=pads, **more)
        return self.value(self.add("Transpose", [pooled], perm=[0, 2, 3, 1]), aval)


def _of_batch(size: int) -> bool:
    return size > 0 and size % _BATCH == 0


def _needed(jaxpr: Any) -> list[bool]:
    """Returns which equations the outputs depend on."""
    wanted = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    used = []
    for equation in reversed(jaxpr.eqns):
        used.append(any(out in wanted for out in equation.outvars))
        if used[-1]:
            wanted |= {atom for atom in equation.invars if not hasattr(atom, "val")}
    return used[::-1]


def _elementwise(kind: str) -> Callable[..., _Value]:
    def translate(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
        exact = any(isinstance(each, _Value) and each.exact for each in inputs)
        return graph.value(graph.add(kind, [graph.name(each) for each in inputs]), aval, exact)

    return translate


def _cast(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    kind = graph._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    return graph.value(graph.add("Cast", [inputs[0].name], to=kind), aval, inputs[0].exact)


def _power(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    exponent = graph.constant(np.array(params["y"], aval.dtype))
    return graph.value(graph.add("Pow", [inputs[0].name, exponent]), aval, inputs[0].exact)


def _square(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    return graph.value(graph.add("Mul", [inputs[0].name] * 2), aval, inputs[0].exact)


def _reciprocal_root(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    return graph.value(graph.add("Reciprocal", [graph.add("Sqrt", [inputs[0].name])]), aval, inputs[0].exact)


def _log_1p(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    one = graph.constant(np.array(1, aval.dtype))
    return graph.value(graph.add("Log", [graph.add("Add", [inputs[0].name, one])]), aval, inputs[0].exact)


def _not_equal(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    exact = any(isinstance(each, _Value) and each.exact for each in inputs)
    equal = graph.add("Equal", [graph.name(each) for each in inputs])
    return graph.value(graph.add("Not", [equal]), aval, exact)


def _select(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    which, if_false, if_true = inputs
    exact = any(isinstance(each, _Value) and each.exact for each in inputs)
    names = [graph.name(which, np.bool_), graph.name(if_true), graph.name(if_false)]
    return graph.value(graph.add("Where", names), aval, exact)


def _reshape(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    return graph.value(graph.add("Reshape", [graph.full(inputs[0]), graph.dimensions(aval.shape)]), aval)


def _broadcast(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    (value, *_), places = inputs, params["broadcast_dimensions"]
    shape = [1] * len(aval.shape)
    for place, size in zip(places, np.shape(value), strict=True):
        shape[place] = size
    name = graph.add("Reshape", [graph.full(value), graph.dimensions(shape)])
    return graph.value(name, aval, tuple(shape) == tuple(aval.shape))


def _transpose(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    return graph.value(graph.add("Transpose", [graph.full(inputs[0])], perm=list(params["permutation"])), aval)


def _concatenate(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    return graph.value(graph.add("Concat", [graph.full(each) for each in inputs], axis=params["dimension"]), aval)


def _slice(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    (value,) = inputs
    strides = params["strides"] or (1,) * len(value.shape)
    cuts = zip(value.shape, params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [axis for axis, (size, start, stop, step) in enumerate(cuts) if (start, stop, step) != (0, size, 1)]
    chosen = [[each[axis] for axis in axes] for each in (params["start_indices"], params["limit_indices"])]
    vectors = [*chosen, axes, [strides[axis] for axis in axes]]
    return graph.value(_cut(graph, value, vectors), aval)


def _reverse(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    axes = list(params["dimensions"])
    return graph.value(_cut(graph, inputs[0], [[-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes)]), aval)


def _cut(graph: _Graph, value: Any, vectors: list[list[int]]) -> str:
    return graph.add("Slice", [graph.full(value), *(graph.constant(np.array(each, np.int64)) for each in vectors)])


def _pad(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    value, filling = inputs
    lows, highs, inner = zip(*params["padding_config"], strict=True)
    if any(inner):
        raise UserError("The network pads between pixels, which is not translated to ONNX: choose another --format.")
    pads = graph.constant(np.array([*lows, *highs], np.int64))
    return graph.value(graph.add("Pad", [graph.full(value), pads, graph.name(filling)]), aval)


def _reduce(kind: str) -> Callable[..., _Value]:
    def translate(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
        axes = [int(axis) for axis in params["axes"]]
        if kind == "ReduceSum":  # in this version of ONNX, the only one that takes its axes as an input
            name = graph.add(kind, [graph.full(inputs[0]), graph.constant(np.array(axes, np.int64))], keepdims=0)
        else:
            name = graph.add(kind, [graph.full(inputs[0])], axes=axes, keepdims=0)
        return graph.value(name, aval)

    return translate


def _dot(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    (left, right), ((contract, contract_right), (batch, batch_right)) = inputs, params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(letters) for _ in left.shape]
    second = [next(letters) for _ in right.shape]
    for one, other in zip([*contract, *batch], [*contract_right, *batch_right], strict=True):
        second[other] = first[one]
    free = [first[axis] for axis in range(len(first)) if axis not in (*contract, *batch)]
    free += [second[axis] for axis in range(len(second)) if axis not in (*contract_right, *batch_right)]
    result = "".join([first[axis] for axis in batch] + free)
    names = [graph.full(left), graph.full(right)]
    if (first, second, list(result)) == (["a", "b"], ["b", "d"], ["a", "d"]):
        return graph.value(graph.add("MatMul", names), aval)
    return graph.value(graph.add("Einsum", names, equation=f"{''.join(first)},{''.join(second)}->{result}"), aval)


def _convolution(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
    images, kernel = inputs
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1 or isinstance(kernel, _Value):
        raise UserError("The network has a transposed convolution, which is not translated to ONNX.")
    first = graph.add("Transpose", [graph.full(images)], perm=list(numbers.lhs_spec))
    lows, highs = zip(*params["padding"], strict=True)
    result = graph.add(
        "Conv",
        [first, graph.constant(np.transpose(np.asarray(kernel), numbers.rhs_spec))],
        strides=list(params["window_strides"]),
        pads=[*lows, *highs],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    back = [numbers.out_spec.index(axis) for axis in range(len(aval.shape))]
    return graph.value(graph.add("Transpose", [result], perm=back), aval)


def _window(kind: str) -> Callable[..., _Value]:
    def translate(graph: _Graph, inputs: list[Any], params: Any, aval: Any) -> _Value:
        _, *window, _ = params["window_dimensions"]
        _, *strides, _ = params["window_strides"]
        _, *padding, _ = params["padding"]
        if kind == "MaxPool":
            return graph._pool(kind, inputs[0], aval, window, strides, padding)
        mean = graph._pool(kind, inputs[0], aval, window, strides, padding, count_include_pad=1)
        size = graph.constant(np.array(math.prod(window), aval.dtype))
        return graph.value(graph.add("Mul", [mean.name, size]), aval)

    return translate


_HANDLERS: dict[str, Callable[..., _Value]] = {
    **{name: _elementwise(kind) for name, kind in {
        "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp",
        "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less",
        "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sqrt": "Sqrt",
        "sub": "Sub", "tanh": "Tanh",
    }.items()},
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dot_general": _dot,
    "expand_dims": _reshape,
    "integer_pow": _power,
    "log1p": _log_1p,
    "ne": _not_equal,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"),
    "reshape": _reshape,
    "rev": _reverse,
    "rsqrt": _reciprocal_root,
    "select_n": _select,
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "transpose": _transpose,
}  # fmt: skip
