"""Which parameters are trained: one tree of labels, which the gradient, the optimizer and BatchNorm follow.

A pattern is a regular expression. It selects all parameters below every module whose name, or whose whole path, it
matches: "head", "conv_7b|block8.*", "backbone/block1", "bias". The pattern "all" selects everything.
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
FROZEN, TRAINED = "frozen", "trained"  # labels; a third kind is the pattern of a group with a learning rate of its own

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Parameters that are trained, and parameters that stay as they are.

    Attributes:
      labels: a tree like the parameters: "frozen", "trained", or the pattern of the parameter's group.
      still: paths of the BatchNorms that use their running statistics, and leave them alone, while training.
    """

    labels: PyTree
    still: frozenset[Path] = frozenset()

    @classmethod
    def of(
        cls,
        variables: Mapping[str, PyTree],
        trainable: str,
        groups: Sequence[tuple[str, float]] = (),
        before: "Partition | None" = None,
    ) -> "Partition":
        """Builds it from `config.model.trainable` and `config.optimizer.groups`.

        A BatchNorm is still where all its parameters are frozen; and it stays still when they are trained later, as in
        Keras: statistics of few new images would destroy what the network knows.

        Args:
          variables: {params, batch_stats}; only the paths matter.
          trainable: a pattern.
          groups: (pattern, factor) pairs; the first that selects a parameter counts.
          before: of the phase before.

        Raises:
          UserError: a pattern that selects nothing.
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
        still = set(before.still) if before else set()
        for norm in _norms(variables.get("batch_stats", {})):
            own = [label for path, label in labels.items() if path[: len(norm)] == norm]
            if own and set(own) == {FROZEN}:
                still.add(norm)
        return cls(flax.traverse_util.unflatten_dict(labels), frozenset(still))

    def trained(self, params: PyTree) -> PyTree:
        """Returns the parameters with None in the place of every frozen one: no gradient and no memory for those."""
        return jax.tree.map(lambda leaf, label: None if label == FROZEN else leaf, params, self.labels)

    def merge(self, trained: PyTree, params: PyTree) -> PyTree:
        """Returns `params` with the trained ones taken from `trained`."""
        return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)

    def freezes(self, module: str) -> bool:
        """Whether everything in a module of the network is frozen; False where there is no such module."""
        labels = jax.tree.leaves(self.labels.get(module, {}))
        return bool(labels) and set(labels) == {FROZEN}

    def factors(self, groups: Iterable[tuple[str, float]]) -> PyTree:
        """Returns by what the learning rate of each trained parameter is multiplied; None for frozen ones."""
        known = dict(groups)
        return jax.tree.map(lambda label: None if label == FROZEN else known.get(label, 1.0), self.labels)

    def apply(self) -> contextlib.AbstractContextManager:
        """While its `with` block runs, the BatchNorms of `still` compute as they do at test time."""
        if not self.still:
            return contextlib.nullcontext()

        def intercept(call, args, kwargs, context):
            if isinstance(context.module, nn.BatchNorm) and context.module.path in self.still:
                kwargs = kwargs | {"use_running_average": True}
            return call(*args, **kwargs)

        return nn.intercept_methods(intercept)


def selects(pattern: str, path: Path) -> bool:
    """Whether a pattern selects the parameter at `path`, such as ("backbone", "top", "bn", "scale")."""
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
