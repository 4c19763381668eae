"""Compares the speed of the ladder's network in cnn_jax, PyTorch and Keras on this machine.

    python scripts/benchmark.py [--gpu] [--quick] [--kinds=train32,infer] [--also-python=PYTHON] [--output=FILE.json]

The peers are installed by `pip install -e '.[bench]'`; those that are missing or fail are left out and named. The file
is written after every kind of work.
`--also-python` also measures cnn_jax in another interpreter, for example one with another version of JAX; it must have
the requirements of cnn_jax. First, all are verified to be the same network: the same number of parameters, and the same
loss on the same weights and images. Then they are timed alternately (A B C A B C ...), each in a process of its own, so
that other load on the machine affects all alike. A ratio is the median over rounds of (its time / our time): above 1,
ours is faster.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# Without JAX, and without `runtime.prepare`, whose environment variables would reach the peers.
from cnn_jax import runtime  # noqa: E402
from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402
from cnn_jax.workdir.layout import METRICS_FILE  # noqa: E402


class Contender(NamedTuple):
    """A script in `scripts/peers`, its `--variant`, the interpreter that runs it, and what its environment adds."""

    module: str
    variant: str
    python: str = sys.executable
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def caches(self) -> bool:
        """Whether it caches compiled programs on disk, so that a second start is faster than the first."""
        return self.module == "ours" or "compile" in self.variant


PEERS = HERE / "peers"
# The others are compared with the first.
CPU = {"ours": Contender("ours", "")} | {
    f"PyTorch {v}": Contender("torch_cnn", v) for v in ("channels-last", "default", "channels-last-compile")
}
GPU = {f"ours {v}": Contender("ours", v) for v in ("float32", "bfloat16")} | {
    f"PyTorch {v}": Contender("torch_cnn", v)
    for v in (
        "channels-last",
        "default",
        "channels-last-compile",
        "channels-last-compile-reduce-overhead",  # with CUDA graphs
        "channels-last-compile-bfloat16",
        "channels-last-compile-reduce-overhead-bfloat16",
    )
}
KERAS = {f"Keras {v}": Contender("keras_cnn", v) for v in ("fit", "train_on_batch")}
WORK = {f"train{batch}": ("train", batch) for batch in (32, 128, 512)} | {"infer": ("infer", 256)}
KINDS, QUICK = (*WORK, "start"), ("train32", "infer", "start")
NEEDS = {"ours": "jax", "torch_cnn": "torch", "keras_cnn": "keras"}
PACKAGES = ("jax", "jaxlib", "flax", "torch", "keras", "tensorflow")


class Failed(Exception):
    """The process of a contender has ended; the message is the last line of its error."""


class Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender, batch: int, steps: int, device: str, cache: str = ""):
        """Starts the process, which compiles at its first command. `cache`: a folder for compiled programs."""
        script = PEERS / f"{contender.module}.py"
        options = [f"--variant={contender.variant}", f"--batch={batch}", f"--steps={steps}", f"--device={device}"]
        environment = os.environ | {"KERAS_BACKEND": keras_backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {} if device == "cuda" else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by __exit__
        self._process = subprocess.Popen(
            [contender.python, script, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment
            | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
            | dict(contender.environment),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __call__(self, what: str, **arguments) -> dict:
        """Sends a command to the process and returns its result.

        Raises:
          Failed: the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        result = self._process.stdout.readline()
        if not result:
            status = self._process.wait()
            self._errors.seek(0)
            lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
            named = [
                line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)
            ]  # PyTorch prints advice after the error
            raise Failed([f"exit status {status}", *lines[-1:], *named[-1:]][-1])
        return json.loads(result)


@contextlib.contextmanager
def leaving_out(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Context that records in `failed` why a contender fails, and prints it."""
    try:
        yield
    except Failed as error:
        failed[name] = str(error)
        print(f"Left out, because it fails: {name} ({error})", flush=True)


def keras_backend() -> str:
    """Returns the backend of Keras: KERAS_BACKEND, or TensorFlow if it is installed, or JAX."""
    return os.environ.get("KERAS_BACKEND") or ("tensorflow" if importlib.util.find_spec("tensorflow") else "jax")


def verify(contenders: dict[str, Contender], device: str, failed: dict[str, str]) -> dict[str, dict]:
    """Compares the losses of every contender with those of the first one, from the same weights.

    Returns:
      Per contender its number of parameters and its largest relative differences.
    """
    batch, found = 64, {}
    first, *others = contenders
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/reference.npz"
        with Worker(contenders[first], batch, 1, device) as ours:
            found[first] = ours("reference", file=file)
        for name in others:
            steps = 1 if contenders[name].module == "ours" else 3
            with leaving_out(name, failed), Worker(contenders[name], batch, steps, device) as worker:
                found[name] = worker("verify", file=file)
    return found


def race(
    contenders: dict[str, Contender],
    what: str,
    batch: int,
    images: int,
    rounds: int,
    device: str,
    failed: dict[str, str],
) -> dict:
    """Times the contenders alternately, `images` images each; the first round, which compiles, does not count.

    Returns:
      Per contender: seconds per round, median images per second, ratio to ours (median, quartiles), peak memory.
    """
    steps, first = max(1, images // batch), next(iter(contenders))
    seconds = {name: [] for name in contenders}
    with contextlib.ExitStack() as stack:
        workers = {n: stack.enter_context(Worker(c, batch, steps, device)) for n, c in contenders.items()}

        def ask(command: str) -> dict[str, dict]:
            results = {}
            for name in list(workers):
                with contextlib.nullcontext() if name == first else leaving_out(name, failed):
                    results[name] = workers[name](command)
                if name in failed:
                    del workers[name]
            return results

        ask(what)
        for _ in range(rounds):
            for name, result in ask(what).items():
                seconds[name].append(result["seconds"])
        about = ask("about")
    return {
        name: {
            "images_per_second": round(steps * batch / statistics.median(seconds[name]), 1),
            "ratio": quartiles([theirs / own for theirs, own in zip(seconds[name], seconds[first])]),
            "seconds": [round(value, 4) for value in seconds[name]],
            **about[name],
        }
        for name in about
    }


def quartiles(values: list[float]) -> list[float]:
    """Returns the median and the quartiles: [median, first, third]."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(value, 3) for value in (middle, low, high)]


def first_step(contender: Contender, device: str, cache: str) -> float:
    """Returns the seconds from the command to the end of the first training step, at batch size 32.

    Ours is the command `cnn_jax.main` with everything it writes; the peers are scripts that only train.
    """
    start = time.perf_counter()
    if contender.module != "ours":
        with Worker(contender, 32, 1, device, cache) as worker:
            worker("train")
            return time.perf_counter() - start
    with tempfile.TemporaryDirectory() as workdir:
        options = [f"--config={HERE.parent}/configs/batchnorm.py", f"--workdir={workdir}", "--config.steps_per_call=1"]
        options += ["--config.data.name=digits", f"--config.dtype={contender.variant or 'float32'}"]
        command = [contender.python, "-m", "cnn_jax.main", *options]
        environment = os.environ | {"CNN_JAX_CACHE": cache} | ({} if device == "cuda" else {"JAX_PLATFORMS": "cpu"})
        process = subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        record = Path(workdir, METRICS_FILE)
        while not (record.exists() and record.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        took = time.perf_counter() - start
        process.kill()
        if process.wait() > 0:
            raise Failed(f"{' '.join(command)} ended with {process.returncode}")
    return took


def start_up(contenders: dict[str, Contender], device: str, rounds: int, failed: dict[str, str]) -> dict[str, dict]:
    """Returns the median seconds from command to first step, without and with the compilation cache."""
    times: dict[str, list[float]] = {}
    for _, (name, contender) in itertools.product(range(rounds), contenders.items()):
        if name in failed:
            continue
        with tempfile.TemporaryDirectory() as cache, leaving_out(name, failed):
            for how in (", cold", ", cached") if contender.caches else ("",):
                times.setdefault(f"{name}{how}", []).append(first_step(contender, device, cache))
    return {name: {"median": round(statistics.median(values), 2), "seconds": values} for name, values in times.items()}


def versions(python: str) -> dict[str, str]:
    """Returns the versions of an interpreter and of its installed `PACKAGES`.

    Raises:
      Failed: the interpreter cannot be run.
    """
    code = f"""import json, platform
from importlib import metadata, util
found = {{name: metadata.version(name) for name in {PACKAGES} if util.find_spec(name)}}
print(json.dumps({{"python": platform.python_version()}} | found))"""
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"{python} cannot be run: {error}") from None
    return json.loads(done.stdout)


def in_interpreters(ours: dict[str, Contender], pythons: list[str]) -> dict[str, Contender]:
    """Returns our contenders in other interpreters, named by their versions.

    Raises:
      Failed: an interpreter cannot be run or has no JAX.
    """
    found = {}
    for python in pythons:
        has = versions(python)
        if "jax" not in has:
            raise Failed(f"{python} has no JAX: install the requirements of cnn_jax there")
        where = f"jax {has['jax']} (python {'.'.join(has['python'].split('.')[:2])})"
        found |= {f"{name}, {where}": contender._replace(python=python) for name, contender in ours.items()}
    return found


def machine(device: str, pythons: list[str]) -> dict:
    """Returns a description of the machine."""
    return {
        "processor": runtime.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": versions(sys.executable),
        "also": [versions(python) for python in pythons],
        "keras_backend": keras_backend(),
        "device": device,
        "checkout": revision(HERE.parent),
    }


def table(result: dict) -> str:
    """Returns the result as a table: one row per contender, one column per kind of work."""
    work, lines = result["work"], []
    names = list(dict.fromkeys(name for found in work.values() for name in found))

    def add(title: str, cell) -> None:
        lines.append([title, *work])
        for name in names:
            lines.append([name, *(cell(found[name]) if name in found else "failed" for found in work.values())])

    def speed(found: dict) -> str:
        middle, low, high = found["ratio"]
        return f"{found['images_per_second']:,.0f} ({middle:.2f}; {low:.2f}-{high:.2f})"

    if work:
        add("images/s (times ours; quartiles)", speed)
        add("peak memory, MB", lambda found: f"{(found['device_memory'] or found['memory']) / 1e6:,.0f}")
    if result["first_step"]:
        lines.append(["command to first step, s"])
        lines += [[name, f"{found['median']:.1f}"] for name, found in result["first_step"].items()]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*lines, fillvalue="")]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main() -> None:
    """Verifies, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU rather than on the CPU")
    parser.add_argument("--quick", action="store_true", help=f"fewer rounds; --kinds={','.join(QUICK)}")
    parser.add_argument("--kinds", help=f"kinds of work to measure, from {','.join(KINDS)}")
    parser.add_argument("--rounds", type=int, help="rounds; by default 9, or 5 with --quick")
    parser.add_argument("--images", type=int, help="images per round; by default 512, or 51,200 with --gpu")
    parser.add_argument("--only", default="", help="measure only peers whose name contains this")
    parser.add_argument(
        "--also-python", action="append", default=[], help="another interpreter in which to measure cnn_jax"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    kinds = options.kinds.split(",") if options.kinds else QUICK if options.quick else KINDS
    if not set(kinds) <= set(KINDS):
        parser.error(f"--kinds must be some of {','.join(KINDS)}")
    device, peers = "cuda" if options.gpu else "cpu", (GPU if options.gpu else CPU) | KERAS
    contenders = {name: contender for name, contender in peers.items() if contender.module == "ours"}
    try:
        contenders |= in_interpreters(contenders, options.also_python)
    except Failed as error:
        parser.error(f"--also-python: {error}")
    contenders |= {name: contender for name, contender in peers.items() if options.only in name}
    missing = {n: NEEDS[c.module] for n, c in contenders.items() if not importlib.util.find_spec(NEEDS[c.module])}
    if missing:
        needs = ", ".join(sorted(set(missing.values())))
        print(f"Left out, because not installed: {needs} (pip install -e '.[bench]').")
    contenders = {name: contender for name, contender in contenders.items() if name not in missing}
    rounds = options.rounds or (5 if options.quick else 9)
    failed = {name: f"{needed} is not installed" for name, needed in missing.items()}
    result = {"machine": machine(device, options.also_python), "failed": failed, "work": {}, "first_step": {}}

    def write() -> None:
        with files.replacing(options.output) as file:
            file.write(json.dumps(result, indent=1) + "\n")

    def running() -> dict[str, Contender]:
        return {name: contender for name, contender in contenders.items() if name not in failed}

    try:
        result["same_network"] = verify(contenders, device, failed)
        print(json.dumps(result, indent=1), flush=True)
        for what, batch in (WORK[kind] for kind in kinds if kind in WORK):
            print(f"{what}, batch {batch} ...", flush=True)
            images = options.images or (51_200 if options.gpu else 512)
            result["work"][f"{what} {batch}"] = race(running(), what, batch, images, rounds, device, failed)
            write()
    except Failed as error:
        sys.exit(f"Error: cnn_jax itself fails: {error}")
    if "start" in kinds:
        print("command to first step ...", flush=True)
        result["first_step"] = start_up(running(), device, 2 if options.quick else 3, failed)
    print(table(result))
    write()


if __name__ == "__main__":
    main()
