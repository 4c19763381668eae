"""Shared by the timing scripts: the experiment of a stage on random images, and a description of the machine."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax import runtime  # noqa: E402

runtime.prepare()  # as the commands do, before JAX is imported


def experiment(stage: str, examples: int = 1024, seed_layout: str | None = None, **changes: Any):
    """Returns the experiment of a stage on random images of 32x32 pixels, with a practically unlimited number of steps.

    Args:
      stage: the name of the stage.
      examples: the number of training images.
      seed_layout: of a `cnn_jax.parallel.placement.Placement`; None for that of the configuration.
      **changes: keys of the configuration, with __ for the dots.
    """
    from cnn_jax import config as config_lib
    from cnn_jax.data.splits import ArraySource, Dataset, Split
    from cnn_jax.parallel.placement import Placement
    from cnn_jax.training.experiment import Experiment

    config = config_lib.load(ROOT / "configs" / f"{stage}.py")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    config.epochs = 10**6
    config_lib.validate(config)
    generator, names = np.random.RandomState(0), tuple("0123456789")
    images = generator.randint(0, 256, (examples, 32, 32, 3)).astype(np.uint8)
    labels = generator.randint(0, 10, examples).astype(np.int32)
    split = Split(ArraySource(names, labels, images), np.arange(examples))
    scan = True if config.mesh.steps == "scan" else None
    place = Placement.choose(config.seeds, seed_layout=seed_layout, scan=scan) if seed_layout else None
    return Experiment(config, Dataset("random", names, split, split, split), place=place)


def machine() -> dict[str, Any]:
    """Returns the provenance of a measurement."""
    from cnn_jax.workdir import provenance

    return provenance.collect()
