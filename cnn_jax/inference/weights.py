"""Exported parameters without a program: a safetensors file, from which the network is rebuilt.

Tensors are named by their paths, such as "params/conv1_1/kernel" and "batch_stats/conv1_1_bn/mean"; of an ensemble, the
position of the seed precedes them: "0/params/conv1_1/kernel". The file's metadata has two entries, both JSON: "header",
what the run recorded and `load_classifier` needs, and "card", a model card.
"""

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import models
from cnn_jax.errors import UserError
from cnn_jax.inference import header as header_lib
from cnn_jax.models import pretrained
from cnn_jax.utils import files

FORMAT = 1

_MOST_BYTES = 2**34


def write(path: Path, members: list[Any], header: dict[str, Any], card: dict[str, Any]) -> None:
    """Writes the parameters, atomically.

    Args:
      path: the file to write or replace.
      members: the variables of each seed.
      header: what the run recorded, and "step".
      card: the model card.

    Raises:
      UserError: safetensors is not installed, or the file cannot be written.
    """
    library = _import()
    tensors = {}
    for index, variables in enumerate(members):
        flat = flax.traverse_util.flatten_dict(variables, sep="/")
        place = f"{index}/" if len(members) > 1 else ""
        tensors |= {place + name: np.asarray(value) for name, value in flat.items()}
    metadata = {"header": json.dumps(header | {"format": FORMAT}), "card": json.dumps(card)}
    files.write_output(path, [library.numpy.save(tensors, metadata)])


def read(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Returns the header and the variables of each seed.

    Raises:
      UserError: the file cannot be read, or its tensors are not those of the network that its header describes.
    """
    library = _import()
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has more than {_MOST_BYTES >> 30} GiB: it is not a file of cnn_jax.")
    try:
        with library.safe_open(str(path), framework="numpy") as file:
            header = header_lib.parse((file.metadata() or {}).get("header", ""), path, FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except UserError:
        raise
    except Exception as error:  # of the library's own type
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be read as safetensors ({reason}). Export it again, or download it again."
        ) from None
    shapes = _shapes(path, header)
    count = header["config"].get("seeds", 1) if header.get("seed") == "ensemble" else 1
    if count > len(tensors):
        raise UserError(f"{path} holds fewer networks than the {count} of its header: it is damaged.")
    members = []
    for index in range(count):
        place = f"{index}/" if count > 1 else ""
        own = {name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)}
        found = {name: pretrained.Weight(value, name) for name, value in own.items()}
        members.append(jax.tree.map(jnp.asarray, pretrained.assign(found, shapes, str(path))))
    return header, members


def _shapes(path: Path, header: dict[str, Any]) -> Any:
    """Returns the variables, without values, of the network that a header describes."""
    try:
        config = header["config"]
        model = models.build(config["model"], len(header["class_names"]), config["dtype"])
        size = header["preprocessing"]["image_size"] or header["input_size"]
        height, width = (size, size) if isinstance(size, int) else size
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
        return {name: variables[name] for name in variables if name in ("params", "batch_stats")}
    except UserError as error:
        raise UserError(f"{path} describes no network of this cnn_jax: {error}") from None
    except Exception as error:  # a header from elsewhere can have any value in its "config"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} describes no network of this cnn_jax ({type(error).__name__}: {reason}).") from None


def _import() -> Any:
    try:
        import safetensors.numpy  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UserError("This format needs safetensors: pip install 'cnn_jax[safetensors]'.") from None
    return safetensors
