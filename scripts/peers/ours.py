"""cnn_jax itself, for scripts/benchmark.py: the `Experiment` that the command trains, with chunks and metrics.

Variants: "" or "float32", or "bfloat16"; with "-scan", with the compiled loop that a GPU has.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the interpreter may have another checkout, or none

from cnn_jax import runtime  # noqa: E402

runtime.prepare()  # before JAX is imported, as the commands do

import jax  # noqa: E402
import numpy as np  # noqa: E402
import workload  # noqa: E402
from flax.traverse_util import flatten_dict, unflatten_dict  # noqa: E402

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.data.order import Order  # noqa: E402
from cnn_jax.data.splits import ArraySource, Dataset, Split  # noqa: E402
from cnn_jax.inference.classifier import make_scorer  # noqa: E402
from cnn_jax.training.experiment import Experiment  # noqa: E402
from cnn_jax.transforms.preprocess import Preprocessing  # noqa: E402


class Ours:
    """See `workload.Contender`."""

    def __init__(self, variant: str, batch: int, steps: int, device: str):
        """Builds the experiment of stage `batchnorm`; see `workload.Contender`."""
        config = config_lib.load(ROOT / "configs" / "batchnorm.py")
        config.batch_size, config.steps_per_call, config.epochs = batch, steps, 1_000_000
        dtype, _, steps_of = variant.partition("-")
        config.dtype, config.mesh.steps = dtype or "float32", steps_of or "auto"
        # A multiple of the chunk, because none crosses an epoch.
        images, labels = workload.data(batch * steps * max(1, workload.VERIFIED_STEPS // steps))
        source = ArraySource(tuple(str(label) for label in range(workload.CLASSES)), labels, images)
        everything, nothing = Split(source, np.arange(len(labels))), Split(source, np.arange(0))
        self._experiment = Experiment(config, Dataset("random", source.class_names, everything, nothing, everything))
        self._now, self._state = 0, self._experiment.init()
        self._order = Order(len(labels), batch)
        self._seed = config.seed
        self._preprocessing = Preprocessing.from_config(config.data)
        self._images = jax.device_put(np.split(images[: batch * steps], steps))
        self._device = jax.devices()[0]
        if self._device.platform != {"cuda": "gpu"}.get(device, device):
            raise SystemExit(f"JAX runs on {self._device.platform}, not on {device}: pip install -e '.[gpu]'")

    def reference(self, file: str) -> None:
        """Writes its weights, the images of its first steps, and the losses that they must give."""
        weights = flatten_dict(self._state.params, sep="/")
        arrays = {name: np.asarray(value) for name, value in weights.items()}
        arrays["test_loss"] = self.test_loss()
        arrays["rows"] = self._order.rows(self._seed, 0, workload.VERIFIED_STEPS)["index"]
        arrays["losses"] = self.losses(arrays["rows"])
        np.savez(file, **arrays)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Takes over weights."""
        params = unflatten_dict(jax.device_put(weights), sep="/")
        self._state = self._state.replace(params=params)

    def losses(self, rows: np.ndarray) -> list[float]:
        """Trains a step a row, whose images must be those that the run itself takes, and returns the losses."""
        np.testing.assert_array_equal(rows, self._order.rows(self._seed, self._now, len(rows))["index"])
        return [self._update() for _ in rows]

    def count(self) -> int:
        """Returns the number of parameters that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._state.params))

    def test_loss(self) -> float:
        """Returns the mean loss of all images, with BatchNorm in inference mode."""
        return self._experiment.evaluate(self._state.variables, "test")["loss"]

    def train(self) -> None:
        """Trains a chunk of steps and fetches its metrics."""
        self._update()

    def infer(self) -> None:
        """Computes log-probabilities, batch by batch, with the function that predicts, serves and is exported."""
        if not hasattr(self, "_score"):
            self._score = jax.jit(make_scorer(self._experiment.model, self._state.variables, self._preprocessing))
        jax.block_until_ready([self._score(images) for images in self._images])

    def versions(self) -> dict[str, str]:
        """Names the framework and what it runs on."""
        return {"jax": jax.__version__, "on": self._device.device_kind}

    def device_memory(self) -> int | None:
        """Returns the most bytes that it held on an accelerator."""
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

    def _update(self) -> float:
        self._now, self._state, values = self._experiment.train_chunk(self._state, self._now)
        return values["loss"]


if __name__ == "__main__":
    workload.serve(Ours)
