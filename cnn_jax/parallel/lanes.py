"""Many seeds as one run: a leading axis, one lane a seed, on everything that differs between them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import PyTree

from cnn_jax.parallel.dispatch import Body, make_chunk

How = Literal["loop", "vmap", "devices"]
_AXIS = "lane"


def count_of(config: Any) -> int:
    """Returns the lanes of a run: its seeds; 0 for a single one, whose arrays have no lane axis."""
    return config.seeds if config.seeds > 1 else 0


def choose(count: int) -> How:
    """Returns how so many lanes run fastest on this kind of device.

    A CPU takes one after the other: under `vmap` a convolution becomes a grouped one, which XLA runs slowly there.
    Several other devices share the lanes if they can do so evenly; one runs them all as one batched program.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return "loop"
    return "devices" if len(devices) > 1 and count % len(devices) == 0 else "vmap"


def make_lane_chunk(body: Body, axes: Sequence[int | None], count: int, *, how: How | None = None) -> Body:
    """Builds `chunk(carry, rows, *constants) -> carry` for `count` lanes, or for one run without a lane axis (0).

    See `cnn_jax.parallel.dispatch.make_chunk`.

    Args:
      body: for one lane.
      axes: of the carry, a row and each constant: 0 where the leaves have a leading lane axis, None where lanes share
        them. The rows of a chunk are `[steps, lanes, ...]` or `[steps, ...]`. The carry always has lanes.
      count: the number of lanes; 0 for none.
      how: "loop" one after the other, "vmap" as one batched program, "devices" spread over all local devices, batched
        on each; None for what `choose` says. In every step they agree to rounding; "loop" equals single runs bit for
        bit.
    """
    if not count:
        return make_chunk(body)
    how = how or choose(count)
    if how == "loop":
        return _looped(make_chunk(body), axes, count)
    batched = over_lanes(body, axes, count)
    if how == "devices":
        mesh = jax.make_mesh((jax.local_device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))
        specs = tuple(PartitionSpec() if axis is None else PartitionSpec(_AXIS) for axis in axes)
        batched = jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(_AXIS), check_vma=False)
    return make_chunk(batched)


def over_lanes(function: Callable[..., Any], axes: Sequence[int | None], count: int) -> Callable[..., Any]:
    """Returns the function of all lanes at once; itself where there are none (0). `axes`: of each argument."""
    return jax.vmap(function, in_axes=tuple(axes)) if count else function


def _looped(chunk: Body, axes: Sequence[int | None], count: int) -> Body:
    def looped(carry, rows, *constants):
        results = []
        for index in range(count):
            own_rows = rows if axes[1] is None else jax.tree.map(lambda x: x[:, index], rows)  # noqa: B023
            own = (take(value, index) if axis == 0 else value for value, axis in zip(constants, axes[2:], strict=True))
            results.append(chunk(take(carry, index), own_rows, *own))
        return stack(results)

    return looped


def take(tree: PyTree, index: int) -> PyTree:
    """Returns one lane."""
    return jax.tree.map(lambda x: x[index], tree)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Returns the trees as lanes of one."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack_rows(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the rows of single runs, each leaf `[steps, ...]`, as `[steps, lanes, ...]`."""
    return {name: np.stack([each[name] for each in rows], axis=1) for name in rows[0]}


def spread(values: dict[str, Any]) -> dict[str, Any]:
    """Returns, of numbers `[lanes]`, the means, the standard deviations (n - 1) as NAME_std, and all under "lanes"."""
    result = {name: float(np.mean(value)) for name, value in values.items()}
    result |= {f"{name}_std": float(np.std(value, ddof=1)) for name, value in values.items()}
    return result | {"lanes": {name: [float(x) for x in value] for name, value in values.items()}}
