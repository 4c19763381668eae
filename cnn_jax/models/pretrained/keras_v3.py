"""Reader of weight files of Keras 3 (`.weights.h5`)."""

from pathlib import Path

from cnn_jax.errors import UserError
from cnn_jax.models.pretrained.keras_legacy import Layer, get, open_hdf5, read_array

_LAYERS = "layers"


def matches(path: str | Path) -> bool:
    """Returns whether the content of a file looks like this format.

    Raises:
      UserError: the file cannot be read.
    """
    with open_hdf5(path) as file:
        return _LAYERS in file


def read(path: str | Path) -> dict[str, Layer]:
    """Returns the layers with weights, in no particular order.

    Layers are named after their class and numbered in the model's order: conv2d, conv2d_1, conv2d_2, ... The weights of
    a layer are named vars/0, vars/1, ... in the layer's order, trainable ones first.

    Args:
      path: a file written by `model.save_weights`.

    Raises:
      UserError: the file cannot be read, or has another format.
    """
    with open_hdf5(path) as file:
        if _LAYERS not in file:
            raise UserError(f"{path} has no group '{_LAYERS}': it is not a file of weights of Keras 3.")
        layers = get(file, _LAYERS)
        groups = {name: get(layers, name) for name in layers}
        layers = {name: get(group, "vars") for name, group in groups.items() if "vars" in group}
        return {
            name: {f"vars/{key}": read_array(get(values, key)) for key in sorted(values, key=int)}
            for name, values in layers.items()
            if len(values)
        }
