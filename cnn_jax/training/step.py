"""The train step and the evaluation step: pure functions of arrays.

`train_step(state, batch, key) -> (state, metrics)` runs as it is under `jax.jit` on one device or with sharded
arguments, under `jax.pmap` with an axis name, and under `jax.vmap` over (state, batch, key).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from cnn_jax import rng
from cnn_jax.models import layers
from cnn_jax.models.protocols import Network
from cnn_jax.models.trainable import Partition
from cnn_jax.training.ema import Average
from cnn_jax.training.inputs import Batch, Inputs
from cnn_jax.training.metrics import Classification, TrainMetrics
from cnn_jax.training.state import TrainState


def soft_targets(labels: Int[Array, " batch"], classes: int, smoothing: float = 0.0) -> Float[Array, "batch classes"]:
    """Returns the probabilities to learn.

    `smoothing` moves that share of the target to the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567).
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns the cross-entropy of each example, in nats."""
    return optax.softmax_cross_entropy(logits, soft_targets(labels, logits.shape[-1]))


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False: hashable, as `jax.jit` needs it
class TrainStep:
    """`train_step(state, batch, key) -> (state, metrics)`, with the run's root key.

    Batches should be full: BatchNorm does not skip padding (see `cnn_jax.training.inputs.Batch`).

    Attributes:
      model: the network.
      optimizer: turns gradients into updates.
      inputs: from a batch to the network's input.
      partition: which parameters are trained, and which BatchNorms keep their statistics; None for all and none.
      label_smoothing: see `soft_targets`.
      diagnostics: whether the gradient norm and the share of dead ReLUs of each layer are reported.
      average: how `state.average` is updated; None without averaging.
      accumulate: parts of a batch whose gradients are computed one after the other and added. BatchNorm sees one part
        at a time.
      unroll: whether the parts are unrolled instead of a `lax.scan`, in which a CPU runs convolutions slowly.
      axis_name: the mapped axis over which the batch is spread, under `jax.pmap`.
    """

    model: Network
    optimizer: optax.GradientTransformation
    inputs: Inputs
    partition: Partition | None = None
    label_smoothing: float = 0.0
    diagnostics: bool = False
    average: Average | None = None
    accumulate: int = 1
    unroll: bool = True
    axis_name: str | None = None

    def init(self, variables: Mapping[str, PyTree]) -> TrainState:
        """Returns the state at step 0 of a network with these variables, {params, batch_stats}."""
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self.init_optimizer(variables["params"]),
        )
        return state.replace(average=self.average.begin(state.current)) if self.average else state

    def init_optimizer(self, params: PyTree) -> PyTree:
        """Returns the state of the optimizer before the first step."""
        return self.optimizer.init(self._trained(params))

    def __call__(self, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, clu_metrics.Collection]:
        """Returns the state after one step, and the metrics of its batch before the update."""
        dropout_key, offset, count = rng.stream(key, "dropout", state.step), 0, batch["mask"].sum()
        if self.axis_name is not None:
            device = jax.lax.axis_index(self.axis_name)
            offset = device * batch["mask"].shape[0]
            dropout_key = jax.random.fold_in(dropout_key, device)
            count = jax.lax.psum(count, self.axis_name)
        targets = soft_targets(batch["label"], self.model.num_classes, self.label_smoothing)
        inputs, targets = self.inputs.train(batch, targets, key, state.step, offset)

        def loss_fn(trained, batch_stats, inputs, targets, mask, dropout_key):
            variables = {"params": self._merge(trained, state.params), "batch_stats": batch_stats}
            with self._frozen_statistics(), layers.batch_axis(self.axis_name):
                logits, updated = self.model.apply(
                    variables,
                    inputs,
                    train=True,
                    method=self.inputs.method,
                    mutable=["batch_stats", "intermediates"] if self.diagnostics else ["batch_stats"],
                    rngs={"dropout": dropout_key},
                )
            losses = optax.softmax_cross_entropy(logits, targets)
            # Divided by the examples of all devices and parts: their gradients then add up to that of the whole.
            return jnp.where(mask, losses, 0).sum() / count.astype(losses.dtype), (logits, losses, updated)

        trained, gradient = self._trained(state.params), jax.grad(loss_fn, has_aux=True)
        if self.accumulate > 1:
            gradient = _in_parts(gradient, self.accumulate, self.unroll)
        grads, (logits, losses, updated) = gradient(
            trained, state.batch_stats, inputs, targets, batch["mask"], dropout_key
        )
        if self.axis_name is not None:
            grads = jax.lax.psum(grads, self.axis_name)
        with jax.numpy_dtype_promotion("standard"):  # optax divides by numbers of steps, which are integers
            updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        metrics = TrainMetrics.single_from_model_output(
            logits=logits,
            labels=batch["label"],
            loss=losses,
            mask=batch["mask"],
            diagnostics=_diagnose(grads, updated) if self.diagnostics else {},
        )
        if self.axis_name is not None:
            metrics = jax.lax.psum(metrics, self.axis_name)
        state = state.replace(
            step=state.step + 1,
            params=self._merge(optax.apply_updates(trained, updates), state.params),
            batch_stats=updated.get("batch_stats", {}),
            opt_state=opt_state,
        )
        if self.average:
            mean, current = self.average.update(state.average, state.current, state.step)
            state = state.replace(average=mean, **current)
        return state, metrics

    def _trained(self, params: PyTree) -> PyTree:
        return self.partition.trained(params) if self.partition else params

    def _merge(self, trained: PyTree, params: PyTree) -> PyTree:
        return self.partition.merge(trained, params) if self.partition else trained

    def _frozen_statistics(self) -> contextlib.AbstractContextManager:
        return self.partition.apply() if self.partition else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False: hashable, as `jax.jit` needs it
class EvalStep:
    """`eval_step(variables, batch) -> metrics`, which counts the examples that the mask marks as real.

    Attributes:
      model: the network.
      inputs: from a batch to the network's input.
    """

    model: Network
    inputs: Inputs

    def __call__(self, variables: dict[str, PyTree], batch: Batch) -> Classification:
        """Returns the sums and counts of a batch."""

        def network(inputs):
            return self.model.apply(variables, inputs, train=False, method=self.inputs.method)

        logits = self.inputs.predict(network, batch)
        losses = cross_entropy(logits, batch["label"])
        return Classification.single_from_model_output(
            logits=logits, labels=batch["label"], loss=losses, mask=batch["mask"]
        )


def _in_parts(gradient: Callable[..., Any], parts: int, unroll: bool) -> Callable[..., Any]:
    """Returns a function like `gradient` that computes a batch in parts, one after the other, and adds the gradients.

    Part i has the examples i, i + parts, ..., so that each device's examples stay on it. Each part has a dropout key of
    its own and begins with the batch statistics that the previous one left. Diagnostics are means over the parts.
    """

    def split(x):
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def summed(trained, batch_stats, inputs, targets, mask, dropout_key):
        def step(carry, part):
            (batch_stats, total), (index, *examples) = carry, part
            if unroll:
                # Makes a part depend on the gradients of the part before. XLA:CPU would otherwise interleave the parts
                # and hold the activations of all; it ignores `optimization_barrier`.
                overflow = sum(jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(total)) == jnp.inf
                examples[0] = jnp.where(overflow, 0, examples[0])
            grads, (logits, losses, updated) = gradient(
                trained, batch_stats, *examples, jax.random.fold_in(dropout_key, index)
            )
            updated, statistics = dict(updated), updated.get("batch_stats", {})
            updated.pop("batch_stats", None)
            return (statistics, jax.tree.map(jnp.add, total, grads)), (logits, losses, updated)

        begin = batch_stats, jax.tree.map(jnp.zeros_like, trained)
        rows = (jnp.arange(parts), *map(split, (inputs, targets, mask)))
        (batch_stats, total), (logits, losses, sown) = jax.lax.scan(step, begin, rows, unroll=parts if unroll else 1)
        updated = {"batch_stats": batch_stats} | jax.tree.map(lambda x: x.mean(0), sown)
        return total, (join(logits), join(losses), updated)

    return summed


def _diagnose(grads: PyTree, updated: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the gradient norm of each layer's kernel and the share of its ReLUs that were zero on the whole batch."""
    kernels = {path[:-1]: grad for path, grad in flax.traverse_util.flatten_dict(grads).items() if path[-1] == "kernel"}
    norms = {f"grad_norm/{'/'.join(path)}": jnp.linalg.norm(grad) for path, grad in kernels.items() if grad is not None}
    sown = updated.get("intermediates", {})
    dead = {f"dead_relu/{n.removeprefix('dead_')}": v[0] for n, v in sown.items() if n.startswith("dead_")}
    return norms | dead
