"""Training state: what a step changes, and how it is divided in a checkpoint."""

import flax.struct
from jaxtyping import PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes. Randomness follows from the seed and `step`, so there is no key.

    Attributes:
      step: steps done, int32 [].
      params: the parameters that are trained next.
      batch_stats: BatchNorm's running statistics.
      opt_state: the state of the optimizer.
      average: {params, batch_stats}, averaged over steps (see `cnn_jax.training.ema`); None without averaging.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = None

    @property
    def current(self) -> dict[str, PyTree]:
        """What training changes next: {params, batch_stats}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, PyTree]:
        """What is evaluated and used for inference: the average where there is one, otherwise the current values."""
        return self.average or self.current

    @property
    def items(self) -> dict[str, PyTree]:
        """The state as items of a checkpoint: "model", which is all that inference reads, and "train"."""
        own = self.current if self.average else {}
        return {"model": self.variables, "train": {"step": self.step, "opt_state": self.opt_state} | own}

    def with_items(self, items: dict[str, PyTree]) -> "TrainState":
        """Returns a state of the same structure with the values of `items`."""
        model = {"average": items["model"]} if self.average else items["model"]
        return self.replace(**model, **items["train"])
