"""The ladder's network in cnn_jax, PyTorch and Keras, side by side on this machine: how long the same work takes.

    python scripts/benchmark.py [--gpu] [--quick] [--output=benchmark.json]

Peers come with `pip install -e '.[bench]'`; those that are missing are left out. All of them first prove to be the
same network: the same number of parameters, and on the same weights and images the same loss. Then each, in a process
of its own, takes its turn (A B C A B C ...), so that whatever else the machine does strikes all alike. A ratio is the
median over rounds of (its time / our time): above 1, ours is the faster. Nothing is judged.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cnn_jax import runtime  # noqa: E402 -- which is only asked: what it prepares must not reach the peers

PEERS = HERE / "peers"
CPU = {"ours": ("ours", "")} | {f"PyTorch {v}": ("torch_cnn", v) for v in ("channels-last", "default")}
GPU = {f"ours {v}": ("ours", v) for v in ("float32", "bfloat16")} | {
    f"PyTorch {v}": ("torch_cnn", v)
    for v in ("channels-last", "default", "channels-last-compile", "channels-last-compile-bfloat16")
}
KERAS = {f"Keras {v}": ("keras_cnn", v) for v in ("fit", "train_on_batch")}
TRAIN_BATCHES, INFERENCE_BATCH = (32, 128, 512), 256
NEEDS = {"ours": "jax", "torch_cnn": "torch", "keras_cnn": "keras"}


class Worker:
    """A contender in a process of its own."""

    def __init__(self, module: str, variant: str, batch: int, steps: int, device: str):
        """Starts it; it compiles when it is first asked to work."""
        options = [f"--variant={variant}", f"--batch={batch}", f"--steps={steps}", f"--device={device}"]
        environment = os.environ | {"KERAS_BACKEND": keras_backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {} if device == "cuda" else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, PEERS / f"{module}.py", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def __call__(self, what: str, **arguments) -> dict:
        """Has a command carried out and returns the answer."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}.")
        return json.loads(answer)


def keras_backend() -> str:
    """Returns the backend that Keras is measured on: the user's, or TensorFlow where it is installed, or JAX."""
    return os.environ.get("KERAS_BACKEND") or ("tensorflow" if importlib.util.find_spec("tensorflow") else "jax")


def verify(contenders: dict[str, tuple[str, str]], device: str) -> dict[str, dict]:
    """Has every peer compute our losses from our weights; returns its parameters and largest relative difference."""
    batch, found = 64, {}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/reference.npz"
        with Worker("ours", "float32", batch, 1, device) as ours:
            found["ours"] = ours("reference", file=file)
        for name, (module, variant) in contenders.items():
            if module != "ours":
                with Worker(module, variant, batch, 3, device) as worker:
                    found[name] = worker("verify", file=file)
    return found


def race(contenders: dict[str, tuple[str, str]], what: str, batch: int, images: int, rounds: int, device: str) -> dict:
    """Lets the contenders take turns at `images` images each; the first turn, with compilation, does not count.

    Returns:
      For each: seconds a turn, the median images a second, the median ratio to ours with quartiles, peak memory.
    """
    steps = max(1, images // batch)
    with contextlib.ExitStack() as stack:
        workers = {n: stack.enter_context(Worker(*c, batch, steps, device)) for n, c in contenders.items()}
        for worker in workers.values():
            worker(what)
        seconds = {name: [] for name in workers}
        for _, (name, worker) in itertools.product(range(rounds), workers.items()):
            seconds[name].append(worker(what)["seconds"])
        about = {name: worker("about") for name, worker in workers.items()}
    ours = seconds[next(iter(seconds))]
    return {
        name: {
            "images_per_second": round(steps * batch / statistics.median(times), 1),
            "ratio": quartiles([theirs / own for theirs, own in zip(times, ours)]),
            "seconds": [round(value, 4) for value in times],
            **about[name],
        }
        for name, times in seconds.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """Returns the median and the quartiles: [median, first, third]."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(value, 3) for value in (middle, low, high)]


def first_step(contender: tuple[str, str], device: str, cache: str) -> float:
    """Returns the seconds from the command to the end of the first training step, at batch 32.

    Ours is the command that users type, with everything it writes; theirs is a script that only trains.
    """
    start = time.perf_counter()
    if contender[0] != "ours":
        with Worker(*contender, 32, 1, device) as worker:
            worker("train")
            return time.perf_counter() - start
    with tempfile.TemporaryDirectory() as workdir:
        options = [f"--config={HERE.parent}/configs/batchnorm.py", f"--workdir={workdir}", "--config.steps_per_call=1"]
        options += ["--config.data.name=digits", f"--config.dtype={contender[1] or 'float32'}"]
        command = [sys.executable, "-m", "cnn_jax.main", *options]
        environment = os.environ | {"CNN_JAX_CACHE": cache} | ({} if device == "cuda" else {"JAX_PLATFORMS": "cpu"})
        process = subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        record = Path(workdir, "metrics.jsonl")
        while not (record.exists() and record.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        took = time.perf_counter() - start
        process.kill()
        if process.wait() > 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
    return took


def start_up(contenders: dict[str, tuple[str, str]], device: str, rounds: int) -> dict[str, dict]:
    """Returns the median seconds from command to first step: for ours without and with what an earlier run cached."""
    times = {f"{name}{how}": [] for name in contenders for how in ((", cold", ", cached") if "ours" in name else ("",))}
    for _, (name, contender) in itertools.product(range(rounds), contenders.items()):
        with tempfile.TemporaryDirectory() as cache:
            for how in (", cold", ", cached") if "ours" in name else ("",):
                times[f"{name}{how}"].append(first_step(contender, device, cache))
    return {name: {"median": round(statistics.median(values), 2), "seconds": values} for name, values in times.items()}


def machine(device: str) -> dict:
    """Describes what was measured on."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "torch", "keras", "tensorflow")
        if importlib.util.find_spec(name)
    }
    return {
        "processor": runtime.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "keras_backend": keras_backend(),
        "device": device,
    }


def table(result: dict) -> str:
    """Returns the result for people: a row a contender, a column a kind of work."""
    work = result["work"]
    lines = [["images/s (times ours; quartiles)", *work]]
    for name in next(iter(work.values())):
        cells = []
        for found in work.values():
            middle, low, high = found[name]["ratio"]
            cells.append(f"{found[name]['images_per_second']:,.0f} ({middle:.2f}; {low:.2f}-{high:.2f})")
        lines.append([name, *cells])
    lines.append(["peak memory, MB", *work])
    for name in next(iter(work.values())):
        peaks = [found[name]["device_memory"] or found[name]["memory"] for found in work.values()]
        lines.append([name, *(f"{peak / 1e6:,.0f}" for peak in peaks)])
    lines.append(["command to first step, s", *[""] * len(work)])
    lines += [[name, f"{found['median']:.1f}", *[""] * (len(work) - 1)] for name, found in result["first_step"].items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main() -> None:
    """Verifies, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU rather than on the CPU")
    parser.add_argument("--quick", action="store_true", help="batch 32 and inference alone, fewer rounds")
    parser.add_argument("--rounds", type=int, help="turns of each; 9, or 5 with --quick")
    parser.add_argument("--only", default="", help="names that contain this, beside ours")
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    device = "cuda" if options.gpu else "cpu"
    contenders = {
        name: contender
        for name, contender in ((GPU if options.gpu else CPU) | KERAS).items()
        if contender[0] == "ours" or options.only in name
    }
    missing = sorted(
        {NEEDS[module] for module, _ in contenders.values() if not importlib.util.find_spec(NEEDS[module])}
    )
    if missing:
        print(f"Left out, because not installed: {', '.join(missing)} (pip install -e '.[bench]').")
    contenders = {name: c for name, c in contenders.items() if NEEDS[c[0]] not in missing}
    rounds = options.rounds or (5 if options.quick else 9)
    result = {"machine": machine(device), "same_network": verify(contenders, device), "work": {}}
    print(json.dumps(result, indent=1), flush=True)
    images = 51_200 if options.gpu else 512
    kinds = [("train", batch) for batch in (TRAIN_BATCHES[:1] if options.quick else TRAIN_BATCHES)]
    for what, batch in [*kinds, ("infer", INFERENCE_BATCH)]:
        print(f"{what}, batch {batch} ...", flush=True)
        result["work"][f"{what} {batch}"] = race(contenders, what, batch, images, rounds, device)
    print("command to first step ...", flush=True)
    result["first_step"] = start_up(contenders, device, 2 if options.quick else 3)
    print(table(result))
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
