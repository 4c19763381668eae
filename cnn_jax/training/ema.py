"""Exponential moving average of the weights, for evaluation, checkpoints and inference."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


@dataclasses.dataclass(frozen=True)
class Average:
    """An exponential moving average of parameters and batch statistics.

    Late in training the weights oscillate around a point that is better than any they visit (Polyak and Juditsky
    1992; Izmailov et al. 2018, arXiv:1803.05407). BatchNorm's running statistics are averaged with the same weights,
    as in airbench: they hardly change over the few steps that the average remembers.

    Attributes:
      decay: share of the average that an update keeps; 0 for no average.
      every: steps between updates.
      ramp: the decay is multiplied by (completed share of the run)^ramp, so that the random weights of the beginning
        are forgotten at once and the average is long only at the end; 0 for a constant decay.
      lookahead: after each update, training continues from the average (Zhang et al. 2019, arXiv:1907.08610; airbench,
        Jordan 2024, arXiv:2404.00498, which has `every` 5, `decay` 0.95^5 and `ramp` 3).
      total_steps: of the run.
    """

    decay: float = 0.0
    every: int = 1
    ramp: float = 0.0
    lookahead: bool = False
    total_steps: int = 1

    @classmethod
    def from_config(cls, config: Any, total_steps: int) -> "Average":
        """Builds it from `config.average`."""
        return cls(config.decay, config.every, config.ramp, config.lookahead, total_steps)

    @property
    def enabled(self) -> bool:
        """Whether anything is averaged."""
        return self.decay > 0

    def begin(self, variables: dict[str, PyTree]) -> dict[str, PyTree] | None:
        """Returns the average at step 0: a copy of {params, batch_stats}; None without averaging."""
        return jax.tree.map(jnp.copy, variables) if self.enabled else None

    def update(
        self, average: dict[str, PyTree], current: dict[str, PyTree], done: Int[Array, ""]
    ) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Returns the average and the variables from which training continues, after `done` steps.

        Args:
          average: {params, batch_stats}.
          current: the same, after that step.
          done: the number of steps.
        """
        due = done % self.every == 0
        weight = 1 - self._decay(done)
        # In this form, frozen parameters stay the same bit for bit.
        average = jax.tree.map(lambda old, new: jnp.where(due, old + weight * (new - old), old), average, current)
        if self.lookahead:
            current = jax.tree.map(lambda new, mean: jnp.where(due, mean, new), current, average)
        return average, current

    def _decay(self, done: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.float32(self.decay) * (done / self.total_steps) ** self.ramp
