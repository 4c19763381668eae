"""Where arrays live: the only file that names devices, meshes and shardings."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from cnn_jax.errors import UserError

SEED, DATA = "seed", "data"  # the axes of the mesh
SeedLayout = Literal["loop", "vmap", "devices"]
Images = Literal["auto", "replicate", "shard"]


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
      images: whether every device holds all images or a part of them; see `put_examples`.
      deterministic: whether a GPU may only use kernels that give the same bits each time.
    """

    mesh: Mesh
    seeds: int | None = None
    seed_layout: SeedLayout | None = None
    scan: bool = False
    images: Images = "auto"
    deterministic: bool = False

    @classmethod
    def from_config(
        cls,
        config: Any,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ) -> "Placement":
        """Returns the placement that `config.mesh` and `config.deterministic` describe.

        By default a CPU is one device, even if XLA was told to make several. Of other devices, all share the seeds if
        they can do so evenly; otherwise as many as can share each batch evenly do. Several processes share each batch,
        and take as many devices each.

        Args:
          config: of a run.
          devices: to use, which may be those of a `jax.experimental.topologies.TopologyDescription`: programs can then
            be compiled, but not run; None for those of all processes.

        Raises:
          UserError: there are not so many devices, or they cannot share the seeds or a batch evenly.
        """
        devices, mesh = list(devices or jax.devices()), config.mesh
        processes = len({device.process_index for device in devices})
        local = len(devices) // processes
        on_cpu, free = devices[0].platform == "cpu", local // max(mesh.data // processes, 1)
        seed = mesh.seed or (free if not on_cpu and free and config.seeds % free == 0 else 1)
        if config.batch_size % config.accumulate:
            raise UserError(_uneven(config.batch_size, config.accumulate, "parts (config.accumulate)"))
        part = config.batch_size // config.accumulate
        data = mesh.data or processes * (1 if on_cpu else _largest_divisor(part // processes, local // seed))
        own = -(-seed * data // processes)
        if own > local:
            make = f" On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count={own} makes so many."
            raise UserError(
                f"config.mesh asks for {seed * data} devices (seed {seed} x data {data}), but JAX has {len(devices)}: "
                f"set smaller numbers.{make if on_cpu else ''}"
            )
        if config.seeds % seed:
            raise UserError(
                f"config.mesh.seed is {seed}, but {config.seeds} seeds cannot be shared evenly by so many devices: "
                f"set it to {_largest_divisor(config.seeds, seed)}, or change config.seeds."
            )
        if data % processes:
            raise UserError(
                f"config.mesh.data is {data}, of which {processes} processes cannot take as many devices each: set it "
                f"to {-(-data // processes) * processes}."
            )
        if part % data:
            parts = f" and {config.accumulate} parts (config.accumulate)" if config.accumulate > 1 else ""
            raise UserError(_uneven(config.batch_size, data * config.accumulate, f"devices{parts}", data))
        scan = {"auto": not on_cpu, "scan": True, "loop": False}[mesh.steps]
        layout: SeedLayout = "devices" if seed > 1 else "loop" if on_cpu and not scan else "vmap"
        used = _spread(devices, seed, data)
        place = cls.choose(config.seeds, devices=used, data=data, seed_layout=layout, scan=scan)
        return dataclasses.replace(place, images=mesh.images, deterministic=config.deterministic)

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
    def compiler_options(self) -> dict[str, Any] | None:
        """Of `jax.jit`, for the programs of training and evaluation; a CPU needs none to give the same bits."""
        on_gpu = self.mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")
        return {"xla_gpu_deterministic_ops": True} if self.deterministic and on_gpu else None

    @property
    def data(self) -> int:
        """The number of devices that share a batch."""
        return self.mesh.shape[DATA]

    @property
    def layout(self) -> dict[str, Any]:
        """How steps and seeds are dispatched, for the record: it decides how sums are rounded."""
        mesh = {"mesh": f"{DATA} {self.data}"} if self.data > 1 else {}
        return {"steps": "scan" if self.scan else "loop", "seeds": self.seed_layout} | mesh

    def put(self, tree: PyTree, sharding: NamedSharding) -> PyTree:
        """Returns the arrays on the devices; of several processes, which all have them, each puts its part."""
        if sharding.is_fully_addressable:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: _put_part(x, sharding), tree)

    def put_part(self, tree: PyTree, sharding: NamedSharding) -> PyTree:
        """Returns global arrays of which this process holds the part `part` of the batch."""
        with jax.transfer_guard("allow"):  # as `jax.device_put` is: it is asked for
            return jax.make_array_from_process_local_data(sharding, tree)

    def part(self, batch_size: int) -> slice:
        """Returns which examples of a batch the devices of this process take: all where there is one process."""
        indices = self.rows(steps=False, seeds=False).addressable_devices_indices_map((batch_size,)).values()
        starts, stops, _ = zip(*(index[0].indices(batch_size) for index in indices if index))
        return slice(min(starts), max(stops))

    @property
    def room(self) -> float:
        """The bytes of images that the devices can hold beside the rest: half of their memory; a CPU does not say."""
        share = self.data if self.images != "replicate" else 1
        return share * self._memory / 2

    def put_examples(self, examples: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns the examples of a split on the devices: all on each, or the images or features spread by rows.

        Spread ones are padded with zeros to a multiple of the devices; labels never are, so they give the number.
        """
        labels = self.put(examples["label"], self.replicated)
        inputs = {name: array for name, array in examples.items() if name != "label"}
        sharding = self.replicated
        if self._must_shard(sum(array.nbytes for array in inputs.values())):
            pad = -len(examples["label"]) % self.data
            inputs = {n: np.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)) for n, x in inputs.items()}
            sharding = NamedSharding(self.mesh, PartitionSpec(DATA))
        return self.put(inputs, sharding) | {"label": labels}

    def _must_shard(self, size: int) -> bool:
        if self.images != "auto":
            return self.images == "shard"
        return size > self._memory / 2

    @property
    def _memory(self) -> float:
        """The bytes of memory of a device, as far as JAX may use them; a CPU does not say."""
        return (self.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", math.inf)

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


def _spread(devices: Sequence[Any], seed: int, data: int) -> list[Any]:
    """Returns the devices of a mesh of `seed` rows and `data` columns: in each row, as many of each process.

    So every process has devices that hold each seed, and can save and report all of them.
    """
    of_process: dict[int, list[Any]] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    own = seed * data // len(of_process)
    grid = np.array([of_process[index][:own] for index in sorted(of_process)])
    return list(grid.reshape(len(of_process), seed, own // seed).swapaxes(0, 1).flat)


def _put_part(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array over the devices of several processes, each of which has it and sends only its own part."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_part(jax.random.key_data(x), sharding))
    host = np.asarray(x)
    with jax.transfer_guard("allow"):  # as `jax.device_put` is: it is asked for
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of a number that is at most `most`, and at least 1."""
    return next((divisor for divisor in range(most, 1, -1) if number % divisor == 0), 1)


def _uneven(batch_size: int, parts: int, names: str, count: int | None = None) -> str:
    """Returns a message with the nearest batch sizes that so many parts share evenly."""
    below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
    sizes = f"{below} or {above}" if below else f"{above}"
    return f"config.batch_size is {batch_size}, which {count or parts} {names} cannot share evenly: set it to {sizes}."


def on_one_device() -> jax.sharding.Sharding:
    """Returns the sharding of arrays for inference, whatever the devices of the training run."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def describe_devices() -> dict[str, Any]:
    """Returns platform, kind and number of the devices, and of the processes if there are several, for the record."""
    devices, processes = jax.devices(), jax.process_count()
    several = {"processes": processes} if processes > 1 else {}
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)} | several
