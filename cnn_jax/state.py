"""What training changes."""

import flax.struct
from jaxtyping import PyTree


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. Whatever is random follows from the seed and `step`, so no key is kept."""

    step: PyTree  # int32 []
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the network is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}
