"""Compiles every program of a run for GPUs that are not there, and reads what XLA made of them.

    pip install -e '.[gpu-compile]' -c constraints.txt
    python scripts/compile_for_gpu.py [--targets=h100,a100] [--only=REGEX] [--output=reports/gpu_programs.json]

`jax[cuda12]` compiles for a GPU without GPU and driver (`jax.experimental.topologies`). The programs are a chunk of
every stage at batch 32 and 512, in float32 and bfloat16, eight seeds, several GPUs, evaluation, the speed run, transfer
features and initialisation. Of each, the report has the time to compile, the memory, what one step launches, reads,
writes, computes and sends, and an estimate of the least time of a step: the bytes divided by the bandwidth of the
memory, or the operations divided by the peak of the arithmetic. Nothing is run, so no time of a GPU is measured.

The exit status is 1, and the program is named, where a loop has a transfer between host and device, a callback,
float64, a scatter, a conditional, an operand that is transposed for a convolution or floating-point numbers gathered
from all GPUs, where a donated state is copied, or where a program cannot be exported for CUDA.

Algorithms are not tuned without a GPU, so that cuDNN's and Triton's choices may differ there.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from cnn_jax import runtime  # noqa: E402

DUMP = Path(tempfile.mkdtemp(prefix="gpu_programs_"))
if __name__ == "__main__":  # before JAX is imported
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    runtime.set_flags(gpu=True)
    FLAGS = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] += f" --xla_dump_to={DUMP} --xla_dump_hlo_as_text"

import hlo  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax import rng  # noqa: E402
from cnn_jax.data.order import Order  # noqa: E402
from cnn_jax.data.pipeline import Pipeline, Resident  # noqa: E402
from cnn_jax.data.splits import ArraySource, Dataset, Split  # noqa: E402
from cnn_jax.parallel.placement import Placement  # noqa: E402
from cnn_jax.training.experiment import Experiment  # noqa: E402
from cnn_jax.training.feature_cache import make_extractor  # noqa: E402
from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402

TARGETS = Path(__file__).parent / "gpu_targets"
# Floating-point operations per second of dense matrix products: float32 as TF32, which JAX uses by default, and
# bfloat16. Source: NVIDIA's data sheets of the H100 SXM and the A100 SXM, which give the former twice as high ("with
# sparsity").
PEAKS = {"h100": {"float32": 494.7e12, "bfloat16": 989.4e12}, "a100": {"float32": 156e12, "bfloat16": 312e12}}
LADDER = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment")
SIZES = {"train": 45_000, "validation": 5_000, "test": 10_000}  # of CIFAR-10 with the default validation split


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
      name: in the report.
      make: from the devices to what `jax.jit` returned and the shapes of its arguments.
      steps: that a call takes; 0 where it has no steps.
      gpus: how many it runs on.
      dtype: in which the network computes.
      donates: whether all results are in the buffers of arguments.
      known: regular expression of problems that are accepted.
    """

    name: str
    make: Callable[[Any], tuple[Any, tuple[Any, ...]]]
    steps: Callable[[], int] = lambda: 0
    gpus: int = 1
    dtype: str = "float32"
    donates: bool = False
    known: str = "(?!)"


class Run:
    """The experiment of a stage on CIFAR-10's shapes, placed on the GPUs of a topology.

    Attributes:
      experiment: whose programs are compiled.
    """

    def __init__(self, stage: str, devices: Any, **changes: Any):
        """Takes keys of the configuration, with __ for the dots."""
        if stage == "speedrun":  # as scripts/speedrun.py runs it
            changes = {"steps_per_call": 1_000_000} | changes
        config = config_lib.load(ROOT / "configs" / f"{stage}.py")
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        config_lib.validate(config)
        folder = Path("features") if config.features.cache else None  # nothing is written there
        self.experiment = Experiment(config, dataset(), folder, Placement.from_config(config, devices))

    @property
    def place(self) -> Placement:
        """Where the arrays are."""
        return self.experiment.place

    @property
    def _model(self) -> Any:
        """Of any protocol."""
        return self.experiment.model

    def chunk(self, phase: int = 0) -> tuple[Any, tuple[Any, ...]]:
        """The first chunk of a phase."""
        run, of = self.experiment, self.experiment.phases[phase]
        shared: Any = self.examples("train", of.on_features)
        order = Order(run.plan.num_examples, run.plan.batch_size)
        rows = Pipeline(Resident(shared), order, run.seeds).rows(*next(run.plan.chunks(of.start, of.stop)))
        keys = self.place.abstract(lambda: rng.root(0))
        arguments = of.train.abstract(run.target(of.stop), rows, shared, keys, of.longest_chunk)
        return of.train.program, arguments

    def evaluation(self, split: str) -> tuple[Any, tuple[Any, ...]]:
        """Scoring a split."""
        of = self.experiment.phases[0]
        arrays, chunk = self.examples(split, of.on_features), of.evaluate.chunk
        rows = of.evaluate.rows(len(arrays["label"]))
        return chunk.program, chunk.abstract((), rows, arrays, self.experiment.target(0).variables)

    def summary(self) -> tuple[Any, tuple[Any, ...]]:
        """From sums and counts to scores."""
        _, ((_, metrics), *_) = self.chunk()
        return self.experiment.fetch.program, (metrics,)

    def initial_variables(self) -> tuple[Any, tuple[Any, ...]]:
        """Random variables of a seed."""
        return jax.jit(self.experiment.initializer.random), (self._on_device(rng.root(0)),)

    def fit_to_images(self) -> tuple[Any, tuple[Any, ...]]:
        """What completes the variables by a look at training images."""
        images = jax.ShapeDtypeStruct((self._model.init_images, 32, 32, 3), np.uint8, sharding=self.place.replicated)
        return jax.jit(self.experiment.initializer.fit), (self.experiment.target(0).params, images)

    def initial_state(self) -> tuple[Any, tuple[Any, ...]]:
        """The optimizer of given variables."""
        return jax.jit(self.experiment.phases[0].step.init), (self.experiment.target(0).variables,)

    def features(self) -> tuple[Any, tuple[Any, ...]]:
        """Features of a batch by a frozen backbone."""
        run, name = self.experiment, self._model.backbone_name
        variables = {kind: {name: tree[name]} for kind, tree in run.target(0).variables.items()}
        shape = (run.config.eval_batch_size, 32, 32, 3)
        images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=self.place.replicated)
        return jax.jit(make_extractor(self._model, run.preprocess)), (variables, images)

    def order(self) -> tuple[Any, tuple[Any, ...]]:
        """The permutation of an epoch."""
        program = jax.jit(functools.partial(jax.random.permutation, x=SIZES["train"]))
        return program, (self._on_device(rng.root(0)),)

    def sharpness(self) -> tuple[Any, tuple[Any, ...]]:
        """The largest eigenvalue of the Hessian."""
        run, (_, (carry, rows, _, shared, keys)) = self.experiment, self.chunk()
        rows = jax.tree.map(lambda x: np.zeros((11, *x.shape[1:]), x.dtype), rows)
        begin = jax.eval_shape(run.phases[0].sharpness.begin, carry[0])
        begin = self._on_device(begin)
        chunk = run.phases[0].sharpness.chunk
        return chunk.program, chunk.abstract(begin, rows, shared, (carry[0], keys))

    def examples(self, split: str, features: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a split on the device."""
        shape = (self._model.network.num_features,) if features else (32, 32, 3)
        dtype = np.float32 if features else np.uint8
        count, everywhere = SIZES[split], self.place.replicated
        by_rows = NamedSharding(self.place.mesh, PartitionSpec("data"))
        sharding = by_rows if self.place.images == "shard" else everywhere  # as `Placement.put_examples`
        return {
            "features" if features else "image": jax.ShapeDtypeStruct((count, *shape), dtype, sharding=sharding),
            "label": jax.ShapeDtypeStruct((count,), np.int32, sharding=everywhere),
        }

    def _on_device(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.place.state), tree)


@functools.cache
def dataset() -> Dataset:
    """Random images of CIFAR-10's shapes."""
    generator, names = np.random.RandomState(0), tuple("0123456789")

    def split(count: int) -> Split:
        images = generator.randint(0, 256, (count, 32, 32, 3), np.uint8)
        return Split(ArraySource(names, generator.randint(0, 10, count).astype(np.int32), images), np.arange(count))

    return Dataset("random", names, *map(split, SIZES.values()))


def programs() -> Iterator[Program]:
    """Yields the programs of all kinds of runs."""

    def of(name: str, method: str, stage: str, *arguments: Any, gpus: int = 1, donates: bool = True, **changes: Any):
        runs: list[Run] = []

        def make(devices: Any) -> tuple[Any, tuple[Any, ...]]:
            runs[:] = [Run(stage, devices, **changes)]
            return getattr(runs[0], method)(*arguments)

        def steps() -> int:
            return runs[0].experiment.phases[sum(arguments)].longest_chunk if method == "chunk" else 0

        dtype = changes.get("dtype", "bfloat16" if stage == "speedrun" else "float32")
        return Program(name, make, steps, gpus, dtype, donates)

    for stage in LADDER:
        for size in (32, 512):
            for dtype in ("float32", "bfloat16"):
                yield of(f"{stage}, batch {size}, {dtype}", "chunk", stage, batch_size=size, dtype=dtype)
    yield of("augment, batch 32, deterministic", "chunk", "augment", deterministic=True)
    yield of("augment, batch 32, skip not finite", "chunk", "augment", on_nan="skip")
    yield of("augment, batch 32, diagnostics", "chunk", "augment", diagnostics=True)
    # Its Hessian takes derivatives of gradients of kernels, which transpose them; it is measured now and then only.
    sharpness = of("augment, sharpness", "sharpness", "augment", diagnostics=True)
    yield dataclasses.replace(sharpness, known="transposed for a convolution")
    yield of("augment, 8 seeds, batch 32", "chunk", "augment", seeds=8)
    yield of("augment, 8 seeds, batch 32, bfloat16", "chunk", "augment", seeds=8, dtype="bfloat16")
    yield of("augment, 8 seeds on 4 GPUs, batch 32", "chunk", "augment", seeds=8, gpus=4)
    yield of("augment on 4 GPUs, batch 512", "chunk", "augment", batch_size=512, gpus=4)
    yield of(
        "augment on 4 GPUs, batch 512, images sharded", "chunk", "augment", batch_size=512, gpus=4, mesh__images="shard"
    )
    yield of("speedrun", "chunk", "speedrun")
    yield of("speedrun, batched Muon", "chunk", "speedrun", optimizer__muon__batched=True)
    sides = (24, 28, 32)
    # In the last block, of 2x2 pixels, XLA transposes a small operand for the gradient of one kernel.
    smallest = of("speedrun, resized to 24 pixels", "chunk", "speedrun", 0, augment__sides=sides)
    yield dataclasses.replace(smallest, known="transposed for a convolution")
    yield of("speedrun, resized to 28 pixels", "chunk", "speedrun", 1, augment__sides=sides)
    yield of("speedrun, 4 seeds on 4 GPUs", "chunk", "speedrun", seeds=4, gpus=4)
    for stage in ("transfer", "transfer_lite"):
        yield of(f"{stage}, head on features", "chunk", stage)
    yield of("transfer_finetune, second phase", "chunk", "transfer_finetune", 1)
    yield of("evaluation of augment", "evaluation", "augment", "validation")
    yield of("evaluation of augment, 8 seeds", "evaluation", "augment", "validation", seeds=8)
    yield of("evaluation of the speed run, 6 views", "evaluation", "speedrun", "test")
    rest = functools.partial(of, donates=False)
    yield rest("features of transfer_lite", "features", "transfer_lite")
    yield rest("features of transfer", "features", "transfer")
    yield rest("summary of a chunk", "summary", "augment")
    yield rest("initialisation of augment", "initial_variables", "augment")
    yield rest("initialisation of the speed run", "initial_variables", "speedrun")
    yield rest("whitening of the speed run", "fit_to_images", "speedrun")
    yield rest("optimizer state of the speed run", "initial_state", "speedrun")
    yield rest("order of an epoch", "order", "augment")


def devices_of(target: str, count: int) -> Any:
    """Returns GPUs to compile for: they have a kind, but compute nothing."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=(TARGETS / f"{target}.txtpb").read_text(), topology=f"1x1x{count}"
    )
    return topology.devices


def bandwidth(target: str) -> float:
    """Returns the bytes per second of a GPU's memory."""
    found = re.search(r"memory_bandwidth: (\d+)", (TARGETS / f"{target}.txtpb").read_text())
    assert found
    return float(found[1])


def compile_for(target: str, program: Program) -> dict[str, Any]:
    """Compiles a program; returns its row of the report."""
    jitted, arguments = program.make(devices_of(target, program.gpus))
    start = time.perf_counter()
    lowered = jitted.trace(*arguments).lower()
    lowering = time.perf_counter() - start
    shutil.rmtree(DUMP)
    DUMP.mkdir()
    row: dict[str, Any] = {"program": program.name, "target": target, "gpus": program.gpus, "steps": program.steps()}
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "tile sizes" not in str(error):
            raise
        # Where there is a GPU, XLA tries several tilings; without one it takes the first, which may not exist.
        start = time.perf_counter()
        compiled = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
        row["without_triton"] = True
    seconds = time.perf_counter() - start
    row |= {"lower_s": round(lowering, 1), "compile_s": round(seconds, 1), "memory": memory(compiled)}
    row |= read(compiled.as_text(), sequence(), program.donates) | {"dtype": program.dtype}
    found = row.pop("problems")
    trip = row["trip"]
    by_bytes, by_flops = trip["nbytes"] / bandwidth(target), trip["flops"] / PEAKS[target][program.dtype]
    row["least_ms_estimated"] = {
        "memory": round(by_bytes * 1e3, 4),
        "arithmetic": round(by_flops * 1e3, 4),
        "larger": round(max(by_bytes, by_flops) * 1e3, 4),
    }
    try:
        exported = jax.export.export(jitted, platforms=("cuda",))(*arguments)
        row["exported_bytes"] = len(exported.mlir_module_serialized)
    except Exception as error:  # whatever the reason, the program is not portable
        found.append(f"export for cuda fails: {str(error).splitlines()[0][:200]}")
    row["problems"] = [each for each in found if not re.search(program.known, each)]
    row["known"] = len(found) - len(row["problems"])
    return row


def memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes that a compiled program needs on each device."""
    found = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    return {name: getattr(found, f"{name}_size_in_bytes") for name in names}


def sequence() -> str:
    """Returns the last list of what is launched that XLA has left."""
    found = [*DUMP.glob("*thunk_sequence_after_thunk_passes.txt"), *DUMP.glob("*thunk_sequence.txt")]
    return found[0].read_text() if found else ""


def read(text: str, thunks: str, donates: bool) -> dict[str, Any]:
    """Returns what the texts of a compiled program show.

    Args:
      text: its HLO.
      thunks: what it launches.
      donates: whether all results must be in the buffers of arguments.
    """
    module, launched = hlo.parse(text), hlo.launches(thunks)
    outer = [loop for loop in module.loops() if not loop.inside]
    longest = max(outer, key=lambda loop: loop.trips or 0, default=None)
    cost = hlo.cost(module, longest.body if longest else module.entry)
    found = hlo.problems(module)
    copies = module.not_aliased() if donates else []
    if copies:
        found.append(f"{len(copies)} donated arrays are copied: outputs {copies[:10]}")
    return {
        "trips": longest.trips if longest else None,
        "trip": cost._asdict(),
        "launches": {"trip": launched.trip._asdict(), "once": launched.once._asdict()},
        "problems": found,
    }


def main() -> int:
    """Compiles, writes the report and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="h100,a100", help="names of files in scripts/gpu_targets")
    parser.add_argument("--only", default="", help="regular expression of the programs to compile")
    parser.add_argument("--output", type=Path, help="file of the report, without it only printed")
    options = parser.parse_args()
    report: dict[str, Any] = {"jax": jax.__version__, "xla_flags": FLAGS, "rows": []}
    source = revision(ROOT, ("cnn_jax", "configs", "scripts"))
    failed = False
    for target in options.targets.split(","):
        for program in programs():
            if not re.search(options.only, program.name):
                continue
            try:
                row = compile_for(target, program) | source
            except jax.errors.JaxRuntimeError as error:
                failed = True
                print(f"{target}: {program.name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                continue
            failed |= bool(row["problems"])
            trip, launches = row["trip"], row["launches"]["trip"]
            print(
                f"{target}: {program.name}: compiled in {row['compile_s']} s; a trip: {launches['kernels']} kernels "
                f"({trip['cudnn']} of cuDNN), {launches['graphs']} graphs + {launches['loose']} launches, "
                f"{trip['nbytes'] / 1e9:.3f} GB, "
                f"{trip['flops'] / 1e9:.1f} GFLOP, sends {trip['collectives'] or 'nothing'}; "
                f"at least {row['least_ms_estimated']['larger']} ms (estimated)",
                flush=True,
            )
            for problem in row["problems"]:
                print(f"{target}: {program.name}: {problem}", file=sys.stderr, flush=True)
            if options.output:
                add(options.output, report, row)
    return int(failed)


def add(path: Path, report: dict[str, Any], row: dict[str, Any]) -> None:
    """Writes a row to a report, whose other rows are kept if the versions and flags are the same."""
    held = json.loads(path.read_text()) if path.exists() else {}
    rows = held["rows"] if {**held, "rows": []} == report else []
    rows = [each for each in rows if (each["target"], each["program"]) != (row["target"], row["program"])]
    with files.replacing(path) as file:
        file.write(json.dumps(report | {"rows": [*rows, row]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
