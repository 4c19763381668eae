"""The sharpness of the loss: the largest eigenvalue of its Hessian, measured now and then between two chunks of steps.

Gradient descent with momentum m is stable in a direction of curvature c only while the learning rate is below
2 (1 + m) / c (Cohen et al. 2021, arXiv:2103.00065): where the sharpness exceeds 2 (1 + m) / rate, steps overshoot.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from cnn_jax.data.pipeline import gather
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk, Rows, repeat_first
from cnn_jax.training.metrics import Diagnostics
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import TrainStep

ITERATIONS = 10  # of the power method
_TINY = np.finfo(np.float32).tiny


class Sharpness:
    """Measures the sharpness: the eigenvalue of largest magnitude of the Hessian of the loss of the next batch.

    The loss is that of the train step, with its dropout and augmentation. The power method starts from the gradient,
    which lies mostly in the directions of the largest eigenvalues (Gur-Ari et al. 2018, arXiv:1812.04754), and ends
    with the Rayleigh quotient. Each of its `ITERATIONS` takes a product of Hessian and vector: the gradient of the
    gradient's product with the vector (Pearlmutter 1994).
    """

    def __init__(self, step: TrainStep, place: Placement, every: int):
        """Compiles when it first measures.

        Args:
          step: the train step.
          place: how seeds and batches are laid out.
          every: the steps from one measurement to the next; 0 for none.
        """
        self._step, self._every = step, every
        self.begin = place.jit_per_seed(self._zeros)
        self.chunk = Chunk(self._iteration, place)

    def __call__(self, steps: tuple[int, int], state: TrainState, rows: Rows, shared: PyTree, keys: PyTree) -> dict:
        """Returns the sharpness by its name, where one of the steps is due; does not wait.

        Args:
          steps: the first step of a chunk, before which it measures, and the one after the last.
          state: before the chunk.
          rows: of the chunk; the first gives the batch.
          shared: all examples.
          keys: the run's root key of each seed.
        """
        start, stop = steps
        if not self._every or -start % self._every >= stop - start:
            return {}
        rows = repeat_first(rows, ITERATIONS + 1)
        (_, sharpness), _ = self.chunk(self.begin(state), rows, shared, (state, keys))
        return {"sharpness": sharpness}

    def _zeros(self, state: TrainState) -> tuple[PyTree, Array]:
        """Returns the vector and the eigenvalue with which the iterations begin."""
        return jax.tree.map(jnp.zeros_like, self._step.trained(state.params)), jnp.zeros(())

    def _iteration(self, carry: tuple, row: PyTree, shared: PyTree, own: tuple) -> tuple[tuple, Diagnostics]:
        """Returns the next vector, of norm 1, and the Rayleigh quotient of the one before; the first was zero."""
        (vector, _), (state, key) = carry, own
        loss = self._step.loss(state, gather(row, shared), key)

        def slope(params):
            gradient, _ = jax.grad(loss, has_aux=True)(params)
            return optax.tree.vdot(gradient, vector), gradient

        product, gradient = jax.grad(slope, has_aux=True)(self._step.trained(state.params))
        size = optax.tree.norm(product)
        following = jax.tree.map(lambda p, g: jnp.where(size > 0, p, g), product, gradient)
        # Where the gradient is zero too, so is the eigenvalue.
        following = optax.tree.scale(1 / jnp.maximum(optax.tree.norm(following), _TINY), following)
        return (following, optax.tree.vdot(vector, product)), Diagnostics({}, jnp.zeros(()))
