"""Diagram of a network, from its modules and the operations in its traced forward pass; nothing is computed."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

COLUMNS = 9  # layers with weights per row
_PITCH, _CHIP, _GAP, _TOP, _SLABS = 1.04, 0.36, 0.05, 0.62, 2.05  # inches

_ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "leaky_relu": "leaky ReLU",
    "tanh": "tanh",
}
_INK, _GREY = "#1b1f24", "#656d76"
# Light enough for black text; the kind of a layer is always written too, so colour is redundant.
_COLOURS = {"Conv": "#a6cee8", "Dense": "#f3c88f", "BatchNorm": "#cfe6d6", "Dropout": "#ead3e3", "input": "#e1e4e8"}
_OTHER = "#f2f3f5"
_MARK = "cnn_jax:"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module of a network, or an operation between two of them.

    Attributes:
      kind: its type, such as "Conv" or "ReLU".
      name: the name of the module; empty for an operation.
      shape: the shape of its output for one image.
      detail: kernel size, pooling window or dropout rate; may be empty.
      parameters: the number of parameters.
      statistics: the number of values in `batch_stats`.
      weights: whether it has a kernel; such a layer begins a new column of the diagram.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    detail: str = ""
    parameters: int = 0
    statistics: int = 0
    weights: bool = False


def layers(model: nn.Module, variables: Any, image_size: tuple[int, int]) -> list[Layer]:
    """Returns the top-level modules of a network and the operations between them, in call order.

    Submodules count as part of their parent. Pooling, activations and reshapes are found in the traced program.
    Branches are listed one after the other.

    Args:
      model: the network.
      variables: its params and batch_stats, or their shapes.
      image_size: height and width of its input.
    """
    found: list[Layer] = []

    def record(call, args, kwargs, context):
        if context.method_name != "__call__" or len(context.module.path) != 1:
            return call(*args, **kwargs)
        # These names appear in the traced program and mark where a module begins and ends.
        output = call(checkpoint_name(args[0], _MARK), *args[1:], **kwargs)
        repeated = any(layer.name == context.module.name for layer in found)
        found.append(_module(context.module, output.shape[1:], {} if repeated else variables))
        return checkpoint_name(output, f"{_MARK}{len(found) - 1}")

    def forward(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images, train=False)

    program = jax.make_jaxpr(forward)(variables, jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32))
    result, inside = [Layer("input", "", (*image_size, 3))], False
    for equation in program.jaxpr.eqns:
        name = str(equation.params.get("name", ""))
        if name.startswith(_MARK):
            inside = name == _MARK
            result += [] if inside else [found[int(name.removeprefix(_MARK))]]
        elif not inside:
            result += _operation(equation)
    return result


def _module(module: nn.Module, shape: tuple[int, ...], variables: Any) -> Layer:
    own = {kind: jax.tree.leaves(tree.get(module.name, {})) for kind, tree in variables.items()}
    kernel, rate = getattr(module, "kernel_size", None), getattr(module, "rate", None)
    return Layer(
        kind=type(module).__name__,
        name=module.name or "",
        shape=shape,
        detail=_size(kernel, "") if kernel else f"{rate:g}" if rate is not None else "",
        parameters=sum(leaf.size for leaf in own.get("params", ())),
        statistics=sum(leaf.size for leaf in own.get("batch_stats", ())),
        weights=any(leaf.ndim > 1 for leaf in own.get("params", ())),
    )


def _operation(equation: Any) -> list[Layer]:
    """Returns the layer that an equation of the traced program stands for; an empty list for other equations."""
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape[1:]
    before = equation.invars[0].aval.shape[1:]
    if name in ("reduce_window_max", "reduce_window_sum"):
        window = _size(equation.params["window_dimensions"][1:-1], "")
        return [Layer("max-pool" if name.endswith("max") else "sum-pool", "", shape, window)]
    if name == "reshape" and len(shape) < len(before):
        return [Layer("flatten", "", shape)]
    if name == "reduce_sum" and len(before) == 3 and len(shape) == 1:
        return [Layer("global mean", "", shape)]
    inner = equation.params.get("call_jaxpr")
    names = [name, equation.params.get("name"), *(e.params.get("name") for e in (inner.eqns if inner else ()))]
    if "max_pool_2x2" in names:  # of cnn_jax.models.ops.pool
        return [Layer("max-pool", "", shape, _size((2, 2), ""))]
    return [Layer(_ACTIVATIONS[name], "", shape) for name in names if name in _ACTIVATIONS][:1]


def network_diagram(model: nn.Module, variables: Any, image_size: tuple[int, int]) -> Figure:
    """Draws a network: one slab per layer with weights, and below it the operations that follow.

    Args:
      model: the network.
      variables: its params and batch_stats, or their shapes.
      image_size: height and width of its input.
    """
    columns: list[list[Layer]] = []
    for layer in layers(model, variables, image_size):
        if (layer.kind, layer.detail) == ("Dropout", "0"):
            continue  # no effect
        if layer.weights or not columns:
            columns.append([])
        columns[-1].append(layer)
    rows = [columns[i : i + COLUMNS] for i in range(0, len(columns), COLUMNS)]
    heights = [_SLABS + max(map(len, row)) * (_CHIP + _GAP) + 0.1 for row in rows]
    width, height = min(len(columns), COLUMNS) * _PITCH + 0.2, _TOP + sum(heights)
    figure = Figure(figsize=(max(width, 4), height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, max(width, 4)), ylim=(0, height), aspect="equal")
    axes.axis("off")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {})))
    more = f"The layers also have {statistics:,} statistics that are not trained." if statistics else ""
    axes.text(0.14, height - 0.26, f"{type(model).__name__}: {parameters:,} parameters", size=12, weight="bold")
    note = "Slabs: outputs of layers; height and depth show the spatial size, thickness the number of channels."
    axes.text(0.14, height - 0.48, f"{note} {more}", size=7.5, color=_GREY)
    top = height - _TOP
    for row, space in zip(rows, heights):
        slabs = [_Slab.of(column[0], 0.1 + (index + 0.5) * _PITCH, max(image_size)) for index, column in enumerate(row)]
        for slab, following in zip(slabs, [*slabs[1:], None]):
            slab.draw(axes, top - 0.88, following)
        for slab, column in zip(slabs, row):
            for place, layer in enumerate(column):
                _chip(axes, slab.x, top - _SLABS - place * (_CHIP + _GAP), layer)
        top -= space
    return figure


@dataclasses.dataclass(frozen=True)
class _Slab:
    """The output of a layer, drawn as a box in oblique projection, centred on `x`; all lengths in inches."""

    layer: Layer
    x: float
    thick: float
    tall: float
    deep: float

    @classmethod
    def of(cls, layer: Layer, x: float, side: int) -> "_Slab":
        *plane, channels = layer.shape
        if not plane:
            return cls(layer, x, 0.12, 0.15 + 0.1 * math.log2(channels + 1), 0.06)
        thick = 0.04 + 0.035 * math.log2(channels + 1)
        return cls(layer, x, thick, 0.1 + 1.1 * plane[0] / side, 0.04 + 0.3 * plane[1] / side)

    @property
    def half(self) -> float:
        return (self.thick + self.deep) / 2

    def draw(self, axes: Axes, y: float, following: "_Slab | None") -> None:
        left, low = self.x - self.half, y - (self.tall + self.deep) / 2
        right, high = left + self.thick, low + self.tall
        far, up = right + self.deep, high + self.deep
        front = [(left, low), (right, low), (right, high), (left, high)]
        lid = [(left, high), (right, high), (far, up), (left + self.deep, up)]
        flank = [(right, low), (far, low + self.deep), (far, up), (right, high)]
        colour = _COLOURS.get(self.layer.kind, _OTHER)
        for corners, shade in ((front, 0.8), (lid, 1.0), (flank, 0.9)):
            axes.add_patch(Polygon(corners, closed=True, fc=_shade(colour, shade), ec=_INK, lw=0.6, joinstyle="round"))
        if following:
            style = {"arrowstyle": "-|>", "color": "#9aa1a9", "lw": 0.9, "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", (following.x - following.half, y), (far, y), arrowprops=style)
        axes.text(self.x, y - 0.98, _size(self.layer.shape), size=7.5, ha="center", color=_INK)


def _chip(axes: Axes, x: float, top: float, layer: Layer) -> None:
    """Draws the label of a layer in a box whose top centre is (x, top)."""
    width, y = _PITCH - 0.1, top - _CHIP / 2
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, top - _CHIP),
            width,
            _CHIP,
            boxstyle="round,pad=0,rounding_size=0.05",
            fc=_COLOURS.get(layer.kind, _OTHER),
            ec="none",
        )
    )
    changes = layer.kind in ("max-pool", "sum-pool", "flatten", "global mean")
    below = [layer.name] if layer.name else ["→ " + _size(layer.shape)] if changes else []
    below += [f"{layer.parameters:,}"] if layer.parameters else []
    axes.text(
        x,
        y + (0.07 if below else 0),
        f"{layer.kind} {layer.detail}".strip(),
        size=7.5,
        ha="center",
        va="center",
        weight="bold",
        color=_INK,
    )
    if below:
        axes.text(x, y - 0.08, " · ".join(below), size=6.2, ha="center", va="center", color=_INK)


def _size(sides: tuple[int, ...], space: str = " ") -> str:
    return f"{space}\N{MULTIPLICATION SIGN}{space}".join(map(str, sides))


def _shade(colour: str, factor: float) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 * factor for i in (1, 3, 5))
