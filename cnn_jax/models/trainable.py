"""Trainable and frozen parameters: one tree of labels for the gradient, the optimizer and BatchNorm.

A pattern is a regular expression. It selects all parameters of every module whose name or path it matches in full:
"head", "conv_7b|block8.*", "backbone/block1"; and parameters themselves: "bias". The pattern "all" selects everything.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
from jaxtyping import PyTree

from cnn_jax.errors import UserError

ALL = "all"
FROZEN, TRAINED = (
    "frozen",
    "trained",
)  # labels; parameters of a group with its own learning rate have the group's pattern

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """The division of a network's parameters into trained and frozen ones.

    Attributes:
      labels: a tree like the parameters: "frozen", "trained", or the pattern of the parameter's group.
      frozen_norms: paths of the BatchNorms that run in inference mode during training.
    """

    labels: PyTree
    frozen_norms: frozenset[Path] = frozenset()

    @classmethod
    def of(
        cls,
        variables: Mapping[str, PyTree],
        trainable: str,
        groups: Sequence[tuple[str, float]] = (),
        previous: "Partition | None" = None,
    ) -> "Partition":
        """Returns the partition for `config.model.trainable` and `config.optimizer.groups`.

        A BatchNorm whose parameters are all frozen runs in inference mode. As in Keras, it also does so after its
        parameters are unfrozen: statistics of a few new images would destroy the pretrained features.

        Args:
          variables: {params, batch_stats}; only the paths matter.
          trainable: pattern of the trained parameters.
          groups: (pattern, factor) pairs; a parameter belongs to the first that selects it.
          previous: the partition of the previous phase.

        Raises:
          UserError: a pattern selects nothing.
        """
        flat = flax.traverse_util.flatten_dict(variables["params"])
        for pattern in (trainable, *(pattern for pattern, _ in groups)):
            if not any(selects(pattern, path) for path in flat):
                raise UserError(
                    f"The pattern {pattern!r} selects none of the network's parameters. Its modules are: "
                    f"{_modules(flat)}."
                )
        labels = {
            path: next((pattern for pattern, _ in groups if selects(pattern, path)), TRAINED)
            if selects(trainable, path)
            else FROZEN
            for path in flat
        }
        frozen_norms = set(previous.frozen_norms) if previous else set()
        for norm in _norms(variables.get("batch_stats", {})):
            own = [label for path, label in labels.items() if path[: len(norm)] == norm]
            if own and set(own) == {FROZEN}:
                frozen_norms.add(norm)
        return cls(flax.traverse_util.unflatten_dict(labels), frozenset(frozen_norms))

    def trained(self, params: PyTree) -> PyTree:
        """Returns the parameters with frozen leaves replaced by None: no gradient and no memory for those."""
        return jax.tree.map(lambda leaf, label: None if label == FROZEN else leaf, params, self.labels)

    def merge(self, trained: PyTree, params: PyTree) -> PyTree:
        """Returns `params` with the trained leaves replaced by those of `trained`."""
        return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)

    def freezes(self, module: str) -> bool:
        """Returns whether all parameters of a top-level module are frozen; False if there is no such module."""
        labels = jax.tree.leaves(self.labels.get(module, {}))
        return bool(labels) and set(labels) == {FROZEN}

    def factors(self, groups: Iterable[tuple[str, float]]) -> PyTree:
        """Returns the learning-rate factor of each trained parameter; None for frozen ones."""
        known = dict(groups)
        return jax.tree.map(lambda label: None if label == FROZEN else known.get(label, 1.0), self.labels)

    def apply(self) -> contextlib.AbstractContextManager:
        """Returns a context in which the BatchNorms of `frozen_norms` run in inference mode."""
        if not self.frozen_norms:
            return contextlib.nullcontext()

        def intercept(call, args, kwargs, context):
            if isinstance(context.module, nn.BatchNorm) and context.module.path in self.frozen_norms:
                kwargs = kwargs | {"use_running_average": True}
            return call(*args, **kwargs)

        return nn.intercept_methods(intercept)


def selects(pattern: str, path: Path) -> bool:
    """Returns whether a pattern selects the parameter at `path`, such as ("backbone", "top", "bn", "scale")."""
    if pattern == ALL:
        return True
    matches = re.compile(pattern).fullmatch
    return any(matches(path[i]) or matches("/".join(path[: i + 1])) for i in range(len(path)))


def _norms(statistics: Mapping[str, Any]) -> set[Path]:
    return {path[:-1] for path in flax.traverse_util.flatten_dict(statistics)}


def _modules(flat: Mapping[Path, Any]) -> str:
    names = dict.fromkeys("/".join(path[:2] if len(path) > 2 else path[:1]) for path in flat)
    shown = list(names)
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])
