"""Data sets: `load(config.data)` returns the training, validation and test images of a data set."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_jax.data.splits import Dataset

# The modules of data sets by `config.data.name`; all other names are those of tfds. Each has a function
# `load(config.data) -> (train, test)`, two `cnn_jax.data.splits.Source`s; where test is None, a part of the training
# images becomes the test split.
MODULES = {"digits": "cnn_jax.data.digits", "folder": "cnn_jax.data.folder"}


def load(config: Any) -> "Dataset":
    """Returns the data set that `config.data` describes, divided into splits; images are decoded on access.

    Args:
      config: `name` (one of `MODULES`, or of an image-classification data set of tfds), `dir`, `validation`,
        `train_examples`, `split_seed` and `image_size`.

    Raises:
      UserError: the data is missing, damaged or unsuitable, or has too few images for the splits.
    """
    # Imported here, because commands decode images without a data set, and tfds takes a second to import.
    from cnn_jax.data.splits import make_splits

    module = importlib.import_module(MODULES.get(config.name, "cnn_jax.data.tfds"))
    train, test = module.load(config)
    return make_splits(config.name, train, test, config)
