"""Data sets: `load(config.data)` returns the training, validation and test images of any of them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_jax.data.splits import Dataset


def load(config: Any) -> "Dataset":
    """Loads the data set that `config.data` describes; images are decoded when they are asked for.

    Args:
      config: `name` ("digits", "folder", or the name of a tfds image-classification data set), `dir`, `validation`,
        `train_examples`, `split_seed` and `image_size`.

    Raises:
      UserError: the data is missing, damaged or unsuitable, or there is too little of it for the split.
    """
    # Imported here: commands read images before they import JAX, and tfds alone takes a second.
    from cnn_jax.data.splits import cut

    if config.name == "digits":
        from cnn_jax.data import digits

        sources = digits.load()
    elif config.name == "folder":
        from cnn_jax.data import folder

        sources = folder.load(config.dir, config.image_size)
    else:
        from cnn_jax.data import tfds

        sources = tfds.load(config.name, config.dir, config.image_size)
    return cut(config.name, *sources, config)
