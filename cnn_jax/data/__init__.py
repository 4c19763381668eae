"""Data sets: `load(config.data)` returns the training, validation and test images of a data set.

To add a data set, write a module here with a function `load(...)` that returns its training and test source (None for
a fifth of the training images), see `cnn_jax.data.splits.Source`; call it in `load` below for its `config.data.name`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_jax.data.splits import Dataset


def load(config: Any) -> "Dataset":
    """Returns the data set that `config.data` describes, divided into splits; images are decoded on access.

    Args:
      config: `name` ("digits", "folder", or the name of a tfds image-classification data set), `dir`, `validation`,
        `train_examples`, `split_seed` and `image_size`.

    Raises:
      UserError: the data is missing, damaged or unsuitable, or has too few images for the splits.
    """
    # Imported here, because commands decode images without a data set, and tfds takes a second to import.
    from cnn_jax.data.splits import make_splits

    if config.name == "digits":
        from cnn_jax.data import digits

        sources = digits.load()
    elif config.name == "folder":
        from cnn_jax.data import folder

        sources = folder.load(config.dir, config.image_size)
    else:
        from cnn_jax.data import tfds

        sources = tfds.load(config.name, config.dir, config.image_size)
    return make_splits(config.name, *sources, config)
