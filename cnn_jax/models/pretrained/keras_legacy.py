"""Reader of weight files of Keras 1 and 2 (`.h5`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.errors import UserError

Layer = dict[str, np.ndarray]  # weights by their names in the file, in the file's order


def read(path: str | Path) -> dict[str, Layer]:
    """Returns the layers with weights, in the file's order, by which Keras itself assigns them.

    Args:
      path: a file written by `model.save_weights` or `model.save`.

    Raises:
      UserError: the file cannot be read, or has another format.
    """
    with open_hdf5(path) as file:
        root = file if "layer_names" in file.attrs or "model_weights" not in file else file["model_weights"]
        layers = {name: _read_layer(_get(root, name)) for name in _names(root, "layer_names")}
        if not layers:
            raise UserError(f"{path} has no list of layers: it is not a file of weights in Keras' legacy format.")
        return {name: layer for name, layer in layers.items() if layer}


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """Opens an `h5py.File`; any error in the `with` block becomes a `UserError`.

    Raises:
      UserError: h5py is not installed, there is no such file, or it is damaged or not HDF5.
    """
    try:
        import h5py
    except ImportError:
        raise UserError("Reading weights of Keras needs h5py: pip install 'cnn_jax[transfer]'.") from None
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}: check the path of the weights.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}): it is damaged, truncated or not HDF5. Download it again."
        ) from None


def _read_layer(group: Any) -> Layer:
    return {name: np.asarray(_get(group, name), np.float32) for name in _names(group, "weight_names")}


def _get(group: Any, name: str) -> Any:
    if name not in group:
        raise UserError(f"{group.file.filename} lists {group.name.rstrip('/')}/{name}, but does not have it.")
    return group[name]


def _names(group: Any, attribute: str) -> list[str]:
    """Returns a list of names; a long one is split over several attributes, whose size HDF5 limits."""
    numbered = (f"{attribute}{part}" for part in count())
    parts = [attribute] if attribute in group.attrs else takewhile(group.attrs.__contains__, numbered)
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
