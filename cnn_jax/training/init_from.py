"""A run that starts from the checkpoint of another one (`config.init_from`)."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from cnn_jax.errors import UserError
from cnn_jax.training.feature_cache import fingerprint
from cnn_jax.utils.text import count
from cnn_jax.workdir.checkpoint import restore_model
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER


@dataclasses.dataclass(frozen=True)
class SourceRun:
    """The run that another one starts from.

    Attributes:
      workdir: as in `config.init_from`.
      step: the best by validation accuracy, as inference uses it.
      variables: {params, batch_stats}; of several seeds those of the first.
      metadata: of the checkpoint.
    """

    workdir: str
    step: int
    variables: Mapping[str, PyTree]
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, workdir: str) -> "SourceRun":
        """Reads the best checkpoint of a run.

        Raises:
          UserError: there is none, or it is damaged.
        """
        try:
            step, variables, metadata, _ = restore_model(Path(workdir).expanduser() / CHECKPOINT_FOLDER, "best")
        except UserError as error:
            raise UserError(f"config.init_from is {workdir!r}: {error}") from None
        if metadata["config"].get("seeds", 1) > 1:
            variables = jax.tree.map(lambda x: x[0], variables)
        return cls(workdir, step, jax.tree.map(np.asarray, variables), metadata)

    def fresh(self, variables: Mapping[str, PyTree], of_classes: Collection[tuple[str, ...]]) -> list[str]:
        """Returns the layers of a network that start fresh, because this run has none of that name and shape.

        Args:
          variables: of that network, {params, batch_stats}.
          of_classes: the paths of the variables that belong to classes, where its classes are not those of this run.

        Raises:
          UserError: no layer fits.
        """
        own, held = _flat(variables), _flat(self.variables)
        fits = {path: path in held and held[path].shape == leaf.shape for path, leaf in own.items()}
        fresh = dict.fromkeys(_layer(path) for path in own if path in of_classes or not fits[path])
        if not {_layer(path) for path in own} - fresh.keys():
            raise UserError(
                f"config.init_from is {self.workdir!r}, of which no layer fits: take a run with the same "
                "config.model.name and similar config.model keys."
            )
        return list(fresh)

    def put_into(self, variables: Mapping[str, PyTree], fresh: Collection[str]) -> dict[str, PyTree]:
        """Returns variables, {params, batch_stats}, with the values of this run in all layers but the `fresh` ones."""
        held = _flat(self.variables)
        new = {
            path: leaf if _layer(path) in fresh else jnp.asarray(held[path]) for path, leaf in _flat(variables).items()
        }
        return {"batch_stats": {}} | flax.traverse_util.unflatten_dict(new)

    def record(self, fresh: list[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what provenance.json says of the start, as JSON.

        Args:
          fresh: see `SourceRun.fresh`.
          metadata: of the run that starts: differences in how images are scaled are recorded, as [here, there].
        """
        here, there = (
            {key: list(each["preprocessing"][key]) for key in ("mean", "std")} for each in (metadata, self.metadata)
        )
        scaled = {key: [here[key], there[key]] for key in here if here[key] != there[key]}
        digest = fingerprint([], self.variables)
        return {"init_from": self.workdir, "step": self.step, "digest": digest, "fresh": fresh} | scaled


def describe(origin: Mapping[str, Any]) -> str:
    """Returns `SourceRun.record` as a sentence."""
    fresh = origin["fresh"]
    rest = f"{count(len(fresh), 'layer')} fresh, not fitting: {', '.join(fresh)}" if fresh else "all layers fit"
    scaled = "".join(f" config.data.{key} was {origin[key][1]} there." for key in ("mean", "std") if key in origin)
    return (
        f"Starting from step {origin['step']:,} of {origin['init_from']} (digest {origin['digest']}); {rest}.{scaled}"
    )


def _layer(path: tuple[str, ...]) -> str:
    """Returns the name of a variable's layer: "block1/conv" for ("params", "block1", "conv", "bias")."""
    return "/".join(path[1:-1])


def _flat(tree: Mapping[str, PyTree]) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(tree)  # pyright: ignore[reportReturnType]
