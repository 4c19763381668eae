"""Reader of weight files of Keras 1 and 2 (`.h5`)."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.errors import UserError

_MOST_NAMES = 10_000
_SECONDS = 30  # to read all lists of names; the largest file of keras.applications takes about one

# Damaged lists of texts of variable length make HDF5 hang or crash, so they are first read in a process of their own.
# Other errors are found again here.
_TRIAL = """
import contextlib, sys
import h5py
with contextlib.suppress(Exception), h5py.File(sys.argv[1], "r") as file:
    def read(_, item):
        for name in item.attrs:
            with contextlib.suppress(Exception):
                held = item.attrs.get_id(name)
                if held.dtype.kind == "O" and len(held.shape) == 1 and held.shape[0] <= int(sys.argv[2]):
                    item.attrs[name]
    read("", file)
    file.visititems(read)
"""

Layer = dict[str, np.ndarray]  # weights by their names in the file, in the file's order


def read(path: str | Path) -> dict[str, Layer]:
    """Returns the layers with weights, in the file's order, by which Keras itself assigns them.

    Args:
      path: a file written by `model.save_weights` or `model.save`.

    Raises:
      UserError: the file cannot be read, or has another format.
    """
    with open_hdf5(path) as file:
        root = file if "layer_names" in file.attrs or "model_weights" not in file else get(file, "model_weights")
        layers = {name: _read_layer(get(root, name)) for name in _names(root, "layer_names")}
        if not layers:
            raise UserError(f"{path} has no list of layers: it is not a file of weights in Keras' legacy format.")
        return {name: layer for name, layer in layers.items() if layer}


@contextlib.contextmanager
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
    _try_elsewhere(path)
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


def _try_elsewhere(path: str | Path) -> None:
    """Raises a `UserError` if HDF5 hangs or crashes on a file."""
    trial = [sys.executable, "-c", _TRIAL, str(path), str(_MOST_NAMES)]
    try:
        ended = subprocess.run(trial, timeout=_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        reason = f"HDF5 needs more than {_SECONDS} s for its lists of names"
    else:
        if ended.returncode >= 0:
            return
        reason = "HDF5 crashes"
    raise UserError(f"{path} cannot be read ({reason}): it is damaged. Download it again.")


def get(group: Any, name: str) -> Any:
    """Returns a member of a group, by a path below it; links to other files are not followed.

    Raises:
      UserError: there is no such member, or it is outside this file.
    """
    import h5py

    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise UserError(f"{group.file.filename} lists {group.name.rstrip('/')}/{part}, but does not have it.")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{group.file.filename}: {group.name.rstrip('/')}/{part} is a link, which is not followed.")
        group = group[part]
    return group


def read_array(dataset: Any) -> np.ndarray:
    """Returns a dataset as float32; only one whose values are in this file, uncompressed.

    So it allocates no more than the file has.

    Raises:
      UserError: it is no such dataset.
    """
    import h5py

    where = f"{dataset.file.filename}: {dataset.name}"
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        raise UserError(f"{where} is not an array of numbers.")
    stored = dataset.id.get_storage_size()
    if dataset.external or dataset.is_virtual or stored != dataset.nbytes:
        raise UserError(
            f"{where} has {dataset.nbytes:,} bytes, of which the file stores {stored:,}: it is compressed, incomplete "
            "or in another file, which Keras does not write."
        )
    return np.asarray(dataset, np.float32)


def _read_layer(group: Any) -> Layer:
    return {name: read_array(get(group, name)) for name in _names(group, "weight_names")}


def _names(group: Any, attribute: str) -> list[str]:
    """Returns a list of names; a long one is split over several attributes, whose size HDF5 limits."""
    numbered = (f"{attribute}{part}" for part in count())
    parts = [attribute] if attribute in group.attrs else takewhile(group.attrs.__contains__, numbered)
    names = []
    for part in parts:
        held = group.attrs.get_id(part)
        # Keras writes texts of fixed or variable length.
        shape, is_text = held.shape, held.dtype.kind in "SO"
        if shape is None or len(shape) != 1 or shape[0] > _MOST_NAMES or not (is_text or shape[0] == 0):
            raise UserError(f"{group.file.filename}: {part} is not a list of at most {_MOST_NAMES:,} names.")
        names += list(group.attrs[part])
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
