"""Two runs of a ladder one after the other on all cores, against one per core: the time of the whole.

    python scripts/benchmark_jobs.py [--stage=batchnorm] [--epochs=3] [--rounds=3]

Each round trains two seeds on handwritten digits (1,294 images of 32x32 pixels) with `--jobs=1` and with one job per
core, the order changing from round to round; the first round, in which programs are compiled, is not counted. The
seconds are those in which the runs train, taken from their `times.json`: with one job at a time their sum, with several
the longest. Writes reports/jobs_cpu.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring

from cnn_jax.workdir.layout import TIMES_FILE


def train(folder: Path, jobs: int, stage: str, epochs: int) -> float:
    """Trains the runs of a ladder and returns the seconds of their training."""
    command = [sys.executable, "-m", "cnn_jax.ladder", f"--workdir={folder}", f"--stages={stage}", f"--jobs={jobs}"]
    settings = {"data.name": "digits", "epochs": epochs, "tensorboard": "off", "checkpoint.epochs": epochs}
    command += [f"--seeds={len(os.sched_getaffinity(0))}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    subprocess.run(command, cwd=measuring.ROOT, check=True, capture_output=True)
    times = [json.loads(path.read_text())["seconds"]["train"] for path in folder.glob(f"*/{TIMES_FILE}")]
    return sum(times) if jobs == 1 else max(times)


def main() -> None:
    """Measures, prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", default="batchnorm")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    seconds: dict[int, list[float]] = {1: [], cores: []}
    for turn in range(arguments.rounds + 1):
        for jobs in (1, cores) if turn % 2 else (cores, 1):
            with tempfile.TemporaryDirectory() as folder:
                found = train(Path(folder), jobs, arguments.stage, arguments.epochs)
            if turn:
                seconds[jobs].append(found)
                print(f"--jobs={jobs}: {found:.1f} s", flush=True)
    ratio = statistics.median(one / many for one, many in zip(seconds[1], seconds[cores], strict=True))
    print(f"One job per core is {ratio:.2f} times as fast (median of {arguments.rounds} rounds).")
    report = {
        "command": f"python scripts/benchmark_jobs.py --stage={arguments.stage} --epochs={arguments.epochs}",
        "machine": measuring.machine(),
        "seconds": {str(jobs): values for jobs, values in seconds.items()},
        "ratio": ratio,
    }
    (measuring.ROOT / "reports" / "jobs_cpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
