"""Published weights of backbones, read from their original files.

There is one module per file format (`keras_legacy.py`, `keras_v3.py`, `torch_legacy.py`) and one per backbone
(`inception_resnet_v2.py`, `efficientnet_lite0.py`), which maps the names in the file to those of our network.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from jaxtyping import PyTree

from cnn_jax.errors import UserError

IMAGENET = "imagenet"  # value of `config.model.weights` that means the published weights


class Weight(NamedTuple):
    """An array from a file.

    Attributes:
      value: in the layout of our network (of a convolution: height, width, in, out).
      origin: its name in the file, for error messages.
    """

    value: np.ndarray
    origin: str


def load(backbone: str, source: str, shapes: PyTree) -> PyTree:
    """Returns the variables of a backbone, {params, batch_stats} of float32 arrays, from published weights.

    Args:
      backbone: its name, a key of `cnn_jax.models.BACKBONES` and the name of a module of this package.
      source: "imagenet" for the published weights, or the path of a file in the same format.
      shapes: the variables of the network; only their shapes matter.

    Raises:
      UserError: the file cannot be obtained or read, or a weight, which the message names, does not fit the network.
    """
    module = importlib.import_module(f"cnn_jax.models.pretrained.{backbone}")  # only some need h5py
    path = module.published() if source == IMAGENET else Path(source).expanduser()
    return assign(module.read(path), shapes, str(path))


def assign(found: Mapping[str, Weight], shapes: PyTree, file: str) -> PyTree:
    """Returns `found` as a tree like `shapes`.

    Args:
      found: weights by path, such as "params/block35_1/branch0/conv/kernel".
      shapes: a tree of objects with a shape.
      file: for error messages.

    Raises:
      UserError: a weight is missing, unexpected, of the wrong shape, or not finite.
    """
    wanted: dict[str, Any] = flax.traverse_util.flatten_dict(shapes, sep="/")
    for name in wanted:
        if name not in found:
            raise UserError(f"{file} has no weight for {name}: it belongs to another network, or is incomplete.")
    for name, (value, origin) in found.items():
        if name not in wanted:
            raise UserError(f"{file} has {origin}, which does not exist in this network ({name}).")
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{file}: {origin} has the shape {value.shape}, where {name} has {wanted[name].shape}: it belongs to "
                "another network."
            )
        if not np.isfinite(value).all():
            raise UserError(f"{file}: {origin} contains values that are not finite: download the file again.")
    flat = {name: np.asarray(found[name].value, np.float32) for name in wanted}
    return flax.traverse_util.unflatten_dict(flat, sep="/")
