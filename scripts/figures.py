"""Draws the figures of the README: python scripts/figures.py [--runs=runs/batchnorm,runs/augment] [--data.dir=DIR].

The figures in the README were drawn with --data.dir=DIR --example=13, with CIFAR-10 in DIR.

Draws the network of a stage, random augmentations of one image, and the learning curves of --runs, as PNG files in
reports/figures (--output). The image is a handwritten digit; with --data.dir, the folder of a tfds data set, it is the
image --example of the data set of the stage.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cnn_jax import cli, config, data, models
from cnn_jax.data.splits import Dataset
from cnn_jax.errors import UserError
from cnn_jax.report import figures
from cnn_jax.transforms.augment import Augmentation
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.utils import text
from cnn_jax.workdir.layout import METRICS_FILE
from cnn_jax.workdir.records import read_metrics

_STAGE = flags.DEFINE_string("stage", "augment", "Stage whose network and augmentation are drawn: configs/STAGE.py.")
_DIR = flags.DEFINE_string(
    "data.dir", None, "Folder of the data set of the stage; a handwritten digit is used by default."
)
_EXAMPLE = flags.DEFINE_integer("example", 0, "Index of the image in the test split that is augmented.", lower_bound=0)
_RUNS = flags.DEFINE_list("runs", [], "Workdirs whose learning curves are drawn.")
_OUTPUT = flags.DEFINE_string("output", "reports/figures", "Folder for the figures; created if missing.")


def main() -> int:
    """Draws all figures and returns the exit status."""
    runs = {Path(run).name: _records(Path(run).expanduser()) for run in _RUNS.value}
    if len(runs) < len(_RUNS.value):
        raise UserError("Two of --runs have the same name: a figure is named after its workdir.")
    stage = config.load(config.ROOT / "configs" / f"{_STAGE.value}.py")
    dataset = _load_data(stage.data)
    image = _example(dataset, Preprocessing.from_config(stage.data))
    model = models.build(stage.model, len(dataset.class_names))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image.shape)), train=False))
    augment = Augmentation.from_config(stage.augment, stage.data.mean, image.shape[:2])
    drawn = {
        "network": figures.network_diagram(model, variables, image.shape[:2]),
        "augmentations": figures.augmentations(image, augment),
    }
    if runs:
        drawn["validation_curves"] = figures.compare_runs(runs)
    drawn |= {f"learning_curves_{name}": figures.learning_curves(records) for name, records in runs.items()}
    output = Path(_OUTPUT.value).expanduser()
    for name, figure in drawn.items():
        _write(output / f"{name}.png", figures.png(figure))
    return 0


def _load_data(settings) -> Dataset:
    with settings.unlocked():
        # Only the test split is used.
        settings.update({"validation": 0, "dir": _DIR.value} if _DIR.value else {"validation": 0, "name": "digits"})
    return data.load(settings)


def _example(dataset: Dataset, preprocess: Preprocessing) -> np.ndarray:
    if _EXAMPLE.value >= len(dataset.test):
        raise UserError(
            f"--example is {_EXAMPLE.value}, but the test split has {text.count(len(dataset.test), 'image')}, counted "
            "from 0."
        )
    stored = dataset.test.source.images(dataset.test.indices[[_EXAMPLE.value]])
    return np.round(np.asarray(preprocess.scale(jnp.asarray(stored)))[0] * 255).astype(np.uint8)


def _records(workdir: Path) -> list[dict]:
    records = read_metrics(workdir)
    if not records:
        raise UserError(f"{workdir} of --runs has no {METRICS_FILE}: name the workdirs of runs.")
    return records


def _write(path: Path, image: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Choose another --output.") from None
    print(path)


if __name__ == "__main__":
    cli.run(main)
