"""Where arrays live: the only file that names devices, meshes and shardings."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

SEED, DATA = "seed", "data"  # the axes of the mesh
SeedLayout = Literal["loop", "vmap", "devices"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run, and how its seeds, batches and steps are laid out on them.

    Attributes:
      mesh: the devices, with the axes "seed" and "data".
      seeds: how many seeds are trained at once: their arrays have a leading axis; None for one seed without that axis.
      seed_layout: "loop" runs one seed after the other, "vmap" all seeds as one batched program, "devices" spreads them
        over the mesh's axis "seed", batched on each device; None for one seed. In every step the three agree to
        rounding; "loop" equals single runs bit for bit.
      scan: whether a chunk of steps is one `lax.scan`, or one call per step. In every step the two agree to rounding.
    """

    mesh: Mesh
    seeds: int | None = None
    seed_layout: SeedLayout | None = None
    scan: bool = False

    @classmethod
    def choose(
        cls,
        seeds: int = 1,
        *,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        data: int = 1,
        seed_layout: SeedLayout | None = None,
        scan: bool | None = None,
    ) -> "Placement":
        """Returns the fastest placement for a number of seeds on this kind of device.

        Args:
          seeds: how many are trained at once.
          devices: to use; None for all of this process.
          data: over how many devices each batch is spread.
          seed_layout: None for the fastest. A CPU takes one seed after the other: under `vmap` a convolution becomes a
            grouped one, which XLA runs slowly there. Several other devices share the seeds if they can do so evenly.
          scan: None for the fastest. Not on a CPU: XLA runs a convolution inside a scan some 40 times slower there
            (9.45 s instead of 0.25 s per step of the ladder's network, jax 0.10.2 on 2 cores).
        """
        devices = jax.local_devices() if devices is None else list(devices)
        on_cpu = devices[0].platform == "cpu"
        if seeds > 1 and seed_layout is None:
            spread = len(devices) > 1 and seeds % (len(devices) // data) == 0
            seed_layout = "loop" if on_cpu else "devices" if spread else "vmap"
        rows = len(devices) // data if seed_layout == "devices" else 1
        mesh = Mesh(np.array(devices[: rows * data]).reshape(rows, data), (SEED, DATA), axis_types=(AxisType.Auto,) * 2)
        return cls(
            mesh,
            seeds if seeds > 1 else None,
            seed_layout if seeds > 1 else None,
            not on_cpu if scan is None else scan,
        )

    @property
    def replicated(self) -> NamedSharding:
        """Of arrays that every device holds: images, features."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def state(self) -> NamedSharding:
        """Of the training state and the keys: spread by seed, where there are several; otherwise replicated."""
        return NamedSharding(self.mesh, self.seed_spec)

    def rows(self, *, steps: bool, seeds: bool) -> NamedSharding:
        """Of rows `[batch]`, with leading axes for steps and seeds if they have them; a batch is spread over "data"."""
        spec = (None,) * steps + tuple(self.seed_spec if seeds else ()) + (DATA,)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    @property
    def seed_spec(self) -> PartitionSpec:
        """Partitions a leading seed axis, where arrays have one and it is spread over devices."""
        return PartitionSpec(SEED) if self.seed_layout == "devices" else PartitionSpec(*[None] * bool(self.seeds))

    @property
    def data(self) -> int:
        """The number of devices that share a batch."""
        return self.mesh.shape[DATA]

    @property
    def layout(self) -> dict[str, Any]:
        """How steps and seeds are dispatched, for the record: it decides how sums are rounded."""
        return {"steps": "scan" if self.scan else "loop", "seeds": self.seed_layout}

    def put(self, tree: PyTree, sharding: NamedSharding) -> PyTree:
        """Returns the arrays on the devices."""
        return jax.device_put(tree, sharding)

    def abstract(self, function: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """Returns shapes, types and shardings of what `function` returns for one seed, with the seed axis added."""
        shapes = jax.eval_shape(function, *arguments)
        lead = () if self.seeds is None else (self.seeds,)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=self.state), shapes)

    def stack(self, trees: Sequence[PyTree]) -> PyTree:
        """Returns the trees of all seeds as one: with a leading axis where there are several."""
        return self.put(trees[0] if self.seeds is None else _stack(trees), self.state)

    def unstack(self, tree: PyTree) -> list[PyTree]:
        """Returns the trees of all seeds."""
        return [tree] if self.seeds is None else _unstack(tree, self.seeds)

    def seed(self, tree: PyTree, index: int = 0) -> PyTree:
        """Returns the part of a tree that belongs to one seed."""
        return tree if self.seeds is None else jax.tree.map(lambda x: x[index], tree)

    def jit_per_seed(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Returns the compiled function of all seeds: every argument and result has the seed axis, if there is one."""
        return jax.jit(function if self.seeds is None else jax.vmap(function))

    def shard_seeds(self, function: Callable[..., PyTree], seed_axes: Sequence[bool]) -> Callable[..., PyTree]:
        """Returns the function of all seeds, as one batched program or spread over devices.

        Args:
          function: of one seed.
          seed_axes: for each argument, whether it has the seed axis. The result has it.
        """
        batched = jax.vmap(function, in_axes=tuple(0 if own else None for own in seed_axes))
        if self.seed_layout != "devices":
            return batched
        specs = tuple(PartitionSpec(SEED) if own else PartitionSpec() for own in seed_axes)
        return jax.shard_map(
            batched, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(SEED), axis_names={SEED}, check_vma=False
        )


# Compiled, because leaf by leaf they would take a call per leaf and seed.
@jax.jit
def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def _unstack(tree: PyTree, count: int) -> list[PyTree]:
    return [jax.tree.map(lambda x: x[index], tree) for index in range(count)]  # noqa: B023


def on_one_device() -> jax.sharding.Sharding:
    """Returns the sharding of arrays for inference, whatever the devices of the training run."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def describe_devices() -> dict[str, Any]:
    """Returns platform, kind and number of the devices, for the record."""
    devices = jax.devices()
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
