"""Muon: momentum whose direction, for a convolution, is replaced by the nearest orthogonal matrix.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

# Of the odd polynomial a x + b x^3 + c x^5, the steepest at zero that keeps [0, 1] bounded: Jordan et al. 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """The sum of decayed gradients, like the parameters."""

    trace: PyTree


def is_convolution(param: Array) -> bool:
    """Whether Muon changes it: kernels `[rows, columns, in, out]`, as opposed to biases and dense layers."""
    return param.ndim == 4


def orthogonalise(matrix: Float[Array, "rows columns"], steps: int) -> Float[Array, "rows columns"]:
    """Moves all singular values towards 1 and leaves the singular vectors as they are, without decomposing.

    Each step applies an odd polynomial to the singular values (Newton-Schulz). It does not converge to 1 but into
    about [0.7, 1.2], fast for small values; precision there buys nothing (Jordan et al. 2024). A singular value s of
    the matrix divided by its Frobenius norm is in that range after n steps if s > 3.4^-n, roughly.

    Args:
      matrix: any; zeros stay zeros.
      steps: how often. 5 is common; 3 were enough for CIFAR-10 (airbench, Jordan 2024, arXiv:2404.00498).
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T  # the products below are then the smaller ones
    x = x / (jnp.linalg.norm(x) + 1e-7)  # no singular value is above the Frobenius norm
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def orthogonalise_all(matrices: Sequence[Array], steps: int) -> list[Array]:
    """Returns `orthogonalise` of each matrix, computed as one batch.

    Three products per step for all matrices together occupy a GPU better than three for each. Smaller matrices are
    padded with zeros, which adds singular values of zero and so changes nothing. Source: github.com/hiverge/
    cifar10-speedrun.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    rows, columns = (max(sizes) for sizes in zip(*(matrix.shape for matrix in wide)))
    padded = [jnp.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1]))) for x in wide]
    batch = jax.vmap(lambda x: orthogonalise(x, steps))(jnp.stack(padded))
    cut = [x[: shape[0], : shape[1]] for x, shape in zip(batch, (x.shape for x in wide))]
    return [x if x.shape == matrix.shape else x.T for x, matrix in zip(cut, matrices)]


def scale_by_muon(
    momentum: float, steps: int, rest: float, nesterov: bool = True, batched: bool = False
) -> optax.GradientTransformation:
    """Muon for convolutions, momentum for everything else, as one transformation.

    A kernel counts as the matrix `[rows * columns * in, out]` that a convolution multiplies its patches with. Its
    update has singular values near 1, and so a size that does not depend on the gradient's: the learning rate alone
    sets it.

    Args:
      momentum: what a step keeps of the velocity, for convolutions.
      steps: see `orthogonalise`.
      rest: what it keeps for the others.
      nesterov: look ahead by one step of momentum.
      batched: compute all kernels by `orthogonalise_all`.
    """

    def keeps(param: Array) -> float:
        return momentum if is_convolution(param) else rest

    def direct(velocities: list[Array]) -> list[Array]:
        kernels = [velocity for velocity in velocities if is_convolution(velocity)]
        matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]
        if batched and matrices:
            directions = orthogonalise_all(matrices, steps)
        else:
            directions = [orthogonalise(matrix, steps) for matrix in matrices]
        found = iter(directions)
        return [next(found).reshape(v.shape) if is_convolution(v) else v for v in velocities]

    def update(updates: PyTree, state: MuonState, params: PyTree | None = None) -> tuple[PyTree, MuonState]:
        def push(gradient, velocity):
            return gradient + keeps(gradient) * velocity

        trace = jax.tree.map(push, updates, state.trace)
        velocity = jax.tree.map(push, updates, trace) if nesterov else trace
        leaves, tree = jax.tree.flatten(velocity)
        return jax.tree.unflatten(tree, direct(leaves)), MuonState(trace)

    return optax.GradientTransformation(lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update)


def keep_norms() -> optax.GradientTransformation:
    """Sets every convolution's kernel, before its update is added, to the norm sqrt(out). Stands last in a chain.

    A BatchNorm follows, so the kernel's size changes no output, but it would grow with every step and so make each
    step turn it by less. Held fixed, the learning rate is the angle of a step, and weight decay is not needed.
    Source: airbench (Jordan 2024).
    """

    def update(change: Array, param: Array) -> Array:
        if not is_convolution(param):
            return change
        factor = jnp.sqrt(param.shape[-1]) / (jnp.linalg.norm(param) + 1e-7)
        return change + (factor - 1) * param

    return optax.stateless(lambda updates, params: jax.tree.map(update, updates, params))
