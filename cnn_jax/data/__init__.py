"""Data sets: `load(config.data)` returns the training, validation and test images of any of them."""

from typing import Any

from cnn_jax.data import digits, folder
from cnn_jax.data.source import Dataset, Source, Split, cut

__all__ = ["Dataset", "Source", "Split", "load"]


def load(config: Any) -> Dataset:
    """Loads the data set that `config.data` describes; images are decoded when they are asked for.

    Args:
      config: `name` ("digits", "folder", or the name of a tfds image-classification data set), `dir`, `validation`,
        `train_examples`, `split_seed` and `image_size`.

    Raises:
      UserError: the data is missing, damaged or unsuitable, or there is too little of it for the split.
    """
    if config.name == "digits":
        sources = digits.load()
    elif config.name == "folder":
        sources = folder.load(config.dir, config.image_size)
    else:
        from cnn_jax.data import tfds_source  # tfds takes a second to import

        sources = tfds_source.load(config.name, config.dir, config.image_size)
    return cut(config.name, *sources, config)
