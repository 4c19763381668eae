"""What training changes."""

import flax.struct
from jaxtyping import PyTree


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. Whatever is random follows from the seed and `step`, so no key is kept."""

    step: PyTree  # int32 []
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = None  # {params, batch_stats}, see cnn_jax.training.ema; None where nothing is averaged

    @property
    def current(self) -> dict[str, PyTree]:
        """What training changes next: {params, batch_stats}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the network is evaluated, saved and served with: their average where there is one."""
        return self.average or self.current
