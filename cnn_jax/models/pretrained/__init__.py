"""Published weights: read from the formats that they are published in, and fitted to our networks one by one.

A format has a file (`keras_legacy.py`, `keras_v3.py`, `torch_legacy.py`), and so has a backbone, which knows what its
weights are called there (`inception_resnet_v2.py`, `efficientnet_lite0.py`).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from jaxtyping import PyTree

from cnn_jax.errors import UserError

IMAGENET = "imagenet"  # the source that stands for the published weights of a backbone


class Weight(NamedTuple):
    """An array of a file.

    Attributes:
      value: in the layout of our network (a convolution: height, width, in, out).
      origin: what the file calls it, for error messages.
    """

    value: np.ndarray
    origin: str


def load(backbone: str, source: str, shapes: PyTree) -> PyTree:
    """Returns the variables of a backbone, {params, batch_stats} of float32 arrays, from published weights.

    Args:
      backbone: its name, a key of `cnn_jax.models.BACKBONES` and the name of a module of this package.
      source: "imagenet" for what its authors published, or the path of such a file.
      shapes: the variables that the network wants; only their shapes matter.

    Raises:
      UserError: the file cannot be had or read, or is not of this network; it names the weight.
    """
    module = importlib.import_module(f"cnn_jax.models.pretrained.{backbone}")  # h5py is needed by some alone
    path = module.published() if source == IMAGENET else Path(source).expanduser()
    return assign(module.read(path), shapes, str(path))


def assign(found: Mapping[str, Weight], shapes: PyTree, file: str) -> PyTree:
    """Returns `found` as a tree like `shapes`.

    Args:
      found: from "params/block35_1/branch0/conv/kernel" to the weight.
      shapes: a tree of anything with a shape.
      file: for error messages.

    Raises:
      UserError: a weight is missing, left over, of another shape, or not finite.
    """
    wanted: dict[str, Any] = flax.traverse_util.flatten_dict(shapes, sep="/")
    for name in wanted:
        if name not in found:
            raise UserError(f"{file} has no weight for {name}: it is not of this network, or not complete.")
    for name, (value, origin) in found.items():
        if name not in wanted:
            raise UserError(f"{file} has {origin}, for which this network has no place ({name}).")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{file}: {origin} has the shape {value.shape}, where {name} has {wanted[name].shape}: it is not of "
                "this network."
            )
        if not np.isfinite(value).all():
            raise UserError(f"{file}: {origin} holds numbers that are not finite: fetch the file again.")
    flat = {name: np.asarray(found[name].value, np.float32) for name in wanted}
    return flax.traverse_util.unflatten_dict(flat, sep="/")
