"""Data sets that do not fit in memory: images per second and memory, streamed and with all images in memory.

    python scripts/make_photographs.py DIR
    python scripts/streams.py DIR [--only=features,decoding,network,steps] [--output=reports/streams_cpu.json]

Each measurement is a process of its own, so that its peak memory is its own.

- features: computes features for stage `transfer_lite` at 224 pixels from the first 2,000 and 20,000
  photographs, streamed, until `SECONDS` have passed; the peak memory includes whatever the network needs.
- decoding, network: the two parts of it alone: decoding batches of photographs, and features of one batch repeatedly.
  Milliseconds of processor time per image say what limits even where other processes take a part of the time.
- grain: decodes with Grain, its threads and its processes, beside the threads of this project; needs pip install grain.
- steps: seconds per training step of stage `augment` on 32x32 images stored as PNG, batch 128, streamed against
  resident, taken in turns in one process.
- sizes: the peak memory of training on 1, 4 and 16 times as many of these images.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np

SECONDS = 30.0
COUNTS = (2_000, 20_000)  # photographs
ROUNDS, STEPS, BATCH = 7, 4, 128
SIZES = (10_000, 40_000, 160_000)  # images of 32x32 pixels
PARTS = ("features", "decoding", "network", "steps", "sizes")


def main() -> None:
    """Measures and writes the report, or is one of the processes that measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure; the others are kept")
    parser.add_argument("--output", type=Path, default=measuring.ROOT / "reports" / "streams_cpu.json")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, *arguments = json.loads(options.worker)
        print(json.dumps(globals()[name](options.photographs, *arguments)))
        return
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    calls = {
        "features": [("features", count) for count in COUNTS],
        "decoding": [("decoding",)],
        "network": [("network",)],
        "grain": [("grain",)],
        "steps": [("steps",)],
        "sizes": [("sizes", kind, size) for size in SIZES for kind in ("never", "always")],
    }
    for part in options.only.split(","):
        report[part] = [run(options.photographs, *call) for call in calls[part]]
        report[part] = report[part] if len(report[part]) > 1 else report[part][0]
        report["command"] = "python scripts/streams.py DIR"
        report["conditions"] = measuring.machine()
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def run(photographs: Path, *call: Any) -> dict[str, Any]:
    """Returns what a measurement returns in a process of its own, and that process's peak memory."""
    command = [sys.executable, __file__, str(photographs), f"--worker={json.dumps(call)}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(" ".join(map(str, call)), result, flush=True)
    return result


def peak() -> int:
    """Returns the peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def photographs_experiment(folder: Path, count: int, cache: Path) -> Any:
    """Returns the experiment of stage transfer_lite on the first `count` photographs, streamed."""
    from cnn_jax import config as config_lib
    from cnn_jax import data
    from cnn_jax.training.experiment import Experiment

    config = config_lib.load(measuring.ROOT / "configs" / "transfer_lite.py")
    config.data.update({"name": "folder", "dir": str(folder), "stream": "always"})
    config.data.train_examples = round(0.72 * count) if count < len(list(folder.glob("*/*.jpg"))) else 0
    config_lib.validate(config)
    return Experiment(config, data.load(config.data), cache)


def features(folder: Path, count: int) -> dict[str, Any]:
    """Computes features for a limited time."""
    from cnn_jax.training.feature_cache import Stopped

    with tempfile.TemporaryDirectory() as cache:
        experiment = photographs_experiment(folder, count, Path(cache))
        state, size = experiment.init(), experiment.config.eval_batch_size
        calls: list[float] = []
        used: list[float] = []

        def stop() -> bool:  # asked before each batch
            calls.append(time.perf_counter())
            used.append(time.process_time())
            return calls[-1] - calls[min(1, len(calls) - 1)] > SECONDS

        try:
            experiment.examples(experiment.phases[0], state.variables, "train", stop)
            stop()
        except Stopped:
            pass
        batches = len(calls) - 2  # the first one compiles
        images = min(batches * size, len(experiment.splits.dataset.train) - size)
        result = per_image(images, calls[-1] - calls[1], used[-1] - used[1])
    return {"photographs": count} | result


def decoding(folder: Path) -> dict[str, Any]:
    """Decodes batches of photographs, and does nothing with them."""
    with tempfile.TemporaryDirectory() as cache:
        experiment = photographs_experiment(folder, COUNTS[-1], Path(cache))
        size, images = experiment.config.eval_batch_size, 0
        examples = experiment.splits.examples("train")
        begin, used = time.perf_counter(), time.process_time()
        for batch in examples.batches(size, 0, len(examples)):
            images += len(batch)
            if time.perf_counter() - begin > SECONDS / 2:
                break
        return per_image(images, time.perf_counter() - begin, time.process_time() - used)


def grain(folder: Path) -> dict[str, Any]:
    """Decodes the same photographs in batches of 32 with this project's threads, Grain's threads and its processes."""
    import grain
    from absl import flags

    from cnn_jax.data.stream import ahead

    flags.FLAGS.mark_as_parsed()  # Grain's processes need it
    with tempfile.TemporaryDirectory() as cache:
        train = photographs_experiment(folder, COUNTS[0], Path(cache)).splits.dataset.train

    single = grain.MapDataset.source(Photographs(train))

    def read(number):
        return train.source.images(train.indices[32 * number : 32 * number + 32])

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
    ways = {
        "threads": lambda: ahead(read, range(len(single) // 32)),
        "grain_threads": lambda: iter(single.to_iter_dataset(options).batch(32, drop_remainder=True)),
        "grain_processes": lambda: iter(
            single.to_iter_dataset(options)
            .batch(32, drop_remainder=True)
            .mp_prefetch(grain.MultiprocessingOptions(num_workers=2))
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, make in ways.items():
            iterator = make()
            next(iterator)  # starts threads and processes
            begin, count = time.perf_counter(), 0
            for _, batch in zip(range(25), iterator):
                count += len(batch)
            rates[name].append(count / (time.perf_counter() - begin))
    return {f"{name}_images_per_second": round(statistics.median(values), 1) for name, values in rates.items()}


class Photographs:
    """The images of a split one by one, as Grain takes them."""

    def __init__(self, split: Any):
        """Takes the split."""
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, position: int) -> np.ndarray:
        return self._split.source.images(self._split.indices[position : position + 1])[0]


def network(folder: Path) -> dict[str, Any]:
    """Computes the features of the same images again and again."""
    from cnn_jax.training.feature_cache import FeatureCache

    with tempfile.TemporaryDirectory() as cache:
        experiment = photographs_experiment(folder, COUNTS[0], Path(cache))
        size = experiment.config.eval_batch_size
        images, variables = experiment.splits.first(size), experiment.init().variables
        seconds: list[float] = []
        used = 0.0
        first = FeatureCache(Path(cache), experiment.model, variables, experiment.preprocess, size)
        for number in range(100):
            if number == 1:  # the first one compiles
                used = time.process_time()
            begin = time.perf_counter()
            first.get(images, f"round{number}")
            seconds.append(time.perf_counter() - begin)
            if sum(seconds[1:]) > SECONDS / 2:
                break
        return per_image(size * len(seconds[1:]), sum(seconds[1:]), time.process_time() - used)


def per_image(images: int, seconds: float, processor: float) -> dict[str, Any]:
    """Returns what a measurement reports."""
    return {
        "images": images,
        "images_per_second": round(images / seconds, 1),
        "processor_ms_per_image": round(1000 * processor / images, 2),
        "peak_mb": peak(),
    }


def small_experiment(stream: str, count: int) -> Any:
    """Returns the experiment of stage augment on `count` PNG images of 32x32 pixels in memory, as tfds has them."""
    import io

    from PIL import Image

    from cnn_jax import config as config_lib
    from cnn_jax.data.splits import Dataset, EncodedSource, Split
    from cnn_jax.training.experiment import Experiment

    config = config_lib.load(measuring.ROOT / "configs" / "augment.py")
    config.update_from_flattened_dict({"batch_size": BATCH, "epochs": 1000, "data.stream": stream})
    config_lib.validate(config)
    generator, encoded = np.random.RandomState(0), []
    for _ in range(1000):
        small = Image.fromarray(generator.randint(0, 256, (8, 8, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        small.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "png")
        encoded.append(buffer.getvalue())
    items = [encoded[number % 1000] for number in range(count)]
    labels = np.arange(count, dtype=np.int32) % 10
    source = EncodedSource(tuple("0123456789"), labels, items, [""] * count, 0)
    train, others = Split(source, np.arange(count)), Split(source, np.arange(1000))
    return Experiment(config, Dataset("random", source.class_names, train, others, others))


def steps(folder: Path) -> dict[str, Any]:
    """Times training steps, streamed and resident in turns."""
    import jax

    runs = {kind: small_experiment(kind, SIZES[0]) for kind in ("never", "always")}
    states = {kind: run.init() for kind, run in runs.items()}
    pipelines = {kind: run.pipeline(run.phases[0], states[kind].variables) for kind, run in runs.items()}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(ROUNDS + 1):  # the first one compiles
        for kind in list(runs)[:: 1 if turn % 2 else -1]:
            run, pipeline = runs[kind], pipelines[kind]
            begin = time.perf_counter()
            rows = pipeline.rows(turn * STEPS, (turn + 1) * STEPS)
            states[kind], metrics = run.phases[0].train(states[kind], rows, pipeline.shared, run.keys)
            jax.block_until_ready((states[kind], metrics))
            if turn:
                times[kind].append((time.perf_counter() - begin) / STEPS)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    same = jax.tree.map(lambda a, b: bool((a == b).all()), states["never"].params, states["always"].params)
    return {
        "batch": BATCH,
        "rounds": ROUNDS,
        "resident_ms": round(1000 * medians["never"], 1),
        "streamed_ms": round(1000 * medians["always"], 1),
        "streamed_over_resident": round(medians["always"] / medians["never"], 3),
        "same_bits": all(jax.tree.leaves(same)),
    }


def sizes(folder: Path, stream: str, count: int) -> dict[str, Any]:
    """Trains a few steps of stage augment on so many images of 32x32 pixels."""
    import jax

    begin = time.perf_counter()
    run = small_experiment(stream, count)
    state = run.init()
    pipeline = run.pipeline(run.phases[0], state.variables)
    jax.block_until_ready(pipeline.shared)
    ready = time.perf_counter() - begin
    state, metrics = run.phases[0].train(state, pipeline.rows(0, 8), pipeline.shared, run.keys)
    jax.block_until_ready((state, metrics))
    return {"stream": stream, "images": count, "seconds_to_first_step": round(ready, 2), "peak_mb": peak()}


if __name__ == "__main__":
    main()
