"""The train step and the evaluation step: pure functions of arrays.

`train_step(state, batch, key) -> (state, metrics)` runs as it is under `jax.jit` on one device or with sharded
arguments, under `jax.pmap` with an axis name, and under `jax.vmap` over (state, batch, key).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from cnn_jax import rng
from cnn_jax.models import layers
from cnn_jax.models.protocols import Network
from cnn_jax.models.trainable import Partition
from cnn_jax.training.diagnostics import of_layers
from cnn_jax.training.ema import Average
from cnn_jax.training.inputs import Batch, Inputs
from cnn_jax.training.metrics import Classification, TrainMetrics
from cnn_jax.training.state import TrainState

SKIPPED = "skipped"  # the metric of `TrainStep.skip_not_finite`


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
      diagnostics: whether the metrics have those of each layer (see `cnn_jax.training.diagnostics`).
      average: how `state.average` is updated; None without averaging.
      class_weights: a factor of the loss for each class; None for 1 everywhere. A mixed target has the mixed loss.
      skip_not_finite: whether an update is dropped whose loss or gradient is not finite. The state then stays as it
        was, except that steps are still counted; the batch enters no metric, and the share of such steps is reported as
        `SKIPPED`.
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
    class_weights: tuple[float, ...] | None = None
    skip_not_finite: bool = False
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
        return self.optimizer.init(self.trained(params))

    def __call__(self, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, clu_metrics.Collection]:
        """Returns the state after one step, and the metrics of its batch before the update."""
        trained = self.trained(state.params)
        grads, (logits, losses, updated) = self.gradients(state, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax divides by numbers of steps, which are integers
            updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        diagnostics, mask = {}, batch["mask"]
        if self.diagnostics:
            sown = updated.get("intermediates", {})
            diagnostics = of_layers(trained, grads, updates, sown, logits, self.axis_name)
        if self.skip_not_finite:
            finite = self._finite(losses, mask, grads)
            diagnostics, mask = diagnostics | {SKIPPED: 1 - finite.astype(jnp.float32)}, mask & finite
        metrics = TrainMetrics.single_from_model_output(
            logits=logits, labels=batch["label"], loss=losses, mask=mask, diagnostics=diagnostics
        )
        if self.axis_name is not None:
            metrics = jax.lax.psum(metrics, self.axis_name)
        before = state
        state = state.replace(
            step=state.step + 1,
            params=self._merge(optax.apply_updates(trained, updates), state.params),
            batch_stats=updated.get("batch_stats", {}),
            opt_state=opt_state,
        )
        if self.average:
            mean, current = self.average.update(state.average, state.current, state.step)
            state = state.replace(average=mean, **current)
        if self.skip_not_finite:
            # Steps, the only integers, are still counted: the learning rate is a function of the step.
            state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old) if jnp.issubdtype(new.dtype, jnp.inexact) else new,
                state,
                before,
            )
        return state, metrics

    def loss(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray, **capture: Any
    ) -> Callable[[PyTree], tuple[Array, Any]]:
        """Returns the loss of a batch as a function of the trained parameters, for `jax.grad` with `has_aux`.

        Its second result is the logits, the loss of each example, and the collections that the network updates.

        Args:
          state: before the step.
          batch: of the step.
          key: the run's root key.
          **capture: further arguments of `flax.linen.Module.apply`, which make the network sow its values.
        """
        loss, constants, arguments = self._loss(state, batch, key, capture)
        return lambda trained: loss(trained, constants, *arguments)

    def _loss(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray, capture: Mapping[str, Any]
    ) -> tuple[Callable[..., tuple[Array, Any]], tuple[Any, ...], tuple[Any, ...]]:
        """Returns the loss as a function of the trained parameters, of constants and of a batch, and these two."""
        dropout_key, offset, count = rng.stream(key, "dropout", state.step), 0, batch["mask"].sum()
        if self.axis_name is not None:
            device = jax.lax.axis_index(self.axis_name)
            offset = device * batch["mask"].shape[0]
            dropout_key = jax.random.fold_in(dropout_key, device)
            count = jax.lax.psum(count, self.axis_name)
        targets = soft_targets(batch["label"], self.model.num_classes, self.label_smoothing)
        inputs, targets = self.inputs.train(batch, targets, key, state.step, offset)
        if self.class_weights is not None:
            targets = targets * jnp.asarray(self.class_weights, targets.dtype)[None]

        def loss(trained, constants, batch_stats, inputs, targets, mask, dropout_key):
            params, count = constants
            variables = {"params": self._merge(trained, params), "batch_stats": batch_stats}
            with self._frozen_statistics(), layers.batch_axis(self.axis_name):
                logits, updated = self.model.apply(
                    variables,
                    inputs,
                    train=True,
                    method=self.inputs.method,
                    mutable=["batch_stats", "intermediates"] if self.diagnostics or capture else ["batch_stats"],
                    rngs={"dropout": dropout_key},
                    **capture,
                )
            losses = optax.softmax_cross_entropy(logits, targets)
            # Divided by the examples of all devices and parts: their gradients then add up to that of the whole.
            return jnp.where(mask, losses, 0).sum() / count.astype(losses.dtype), (logits, losses, updated)

        return loss, (state.params, count), (state.batch_stats, inputs, targets, batch["mask"], dropout_key)

    def gradients(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray, **capture: Any
    ) -> tuple[PyTree, tuple[jax.Array, jax.Array, Mapping[str, Any]]]:
        """Returns the gradients of a step, and (logits, losses, updated collections) of its forward pass.

        The arguments are those of `loss`.
        """
        loss, constants, arguments = self._loss(state, batch, key, capture)
        gradient = _gradient(loss)
        if self.accumulate > 1:
            gradient = _in_parts(gradient, self.accumulate, self.unroll)
        grads, aux = gradient(self.trained(state.params), constants, *arguments)
        return grads if self.axis_name is None else jax.lax.psum(grads, self.axis_name), aux

    def _finite(self, losses: jax.Array, mask: jax.Array, grads: PyTree) -> jax.Array:
        """Returns whether the losses of the real examples and the gradients are finite, on all devices."""
        all_finite = [jnp.isfinite(jnp.where(mask, losses, 0)), *map(jnp.isfinite, jax.tree.leaves(grads))]
        finite = jnp.stack([each.all() for each in all_finite]).all()
        return finite if self.axis_name is None else jax.lax.pmin(finite.astype(jnp.int32), self.axis_name) > 0

    def trained(self, params: PyTree) -> PyTree:
        """Returns the parameters with None in place of those that are not trained."""
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


def _gradient(loss: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[PyTree, Any]]:
    """Returns `jax.grad(loss, has_aux=True)`, which under `jax.vmap` is the gradient of a sum over the mapped axis.

    The two are equal, because no term of the sum depends on the parameters of another. But `vmap` of the gradient of
    a kernel is a grouped convolution whose windows are as large as an image, with operands that must be transposed;
    the gradient of a `vmap` is a grouped gradient of a kernel, which cuDNN has.
    """
    gradient = jax.custom_batching.custom_vmap(jax.grad(loss, has_aux=True))

    @gradient.def_vmap
    def of_sum(size: int, mapped: Any, trained: PyTree, *others: Any) -> tuple[Any, Any]:
        trained = jax.tree.map(
            lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)), trained, mapped[0]
        )
        axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, tuple(mapped[1:]))

        def total(trained):
            losses, aux = jax.vmap(loss, in_axes=(0, *axes), axis_size=size)(trained, *others)
            return losses.sum(), aux

        result = jax.grad(total, has_aux=True)(trained)
        return result, jax.tree.map(lambda _: True, result)

    return gradient


def _in_parts(gradient: Callable[..., Any], parts: int, unroll: bool) -> Callable[..., Any]:
    """Returns a function like `gradient` that computes a batch in parts, one after the other, and adds the gradients.

    Part i has the examples i, i + parts, ..., so that each device's examples stay on it. Each part has a dropout key of
    its own and begins with the batch statistics that the previous one left.
    """

    def split(x):
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def summed(trained, constants, batch_stats, inputs, targets, mask, dropout_key):
        def step(carry, part):
            (batch_stats, total), (index, *examples) = carry, part
            if unroll:
                # Makes a part depend on the gradients of the part before. XLA:CPU would otherwise interleave the parts
                # and hold the activations of all; with `optimization_barrier` it needed nearly as much memory.
                overflow = sum(jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(total)) == jnp.inf
                examples[0] = jnp.where(overflow, 0, examples[0])
            grads, (logits, losses, updated) = gradient(
                trained, constants, batch_stats, *examples, jax.random.fold_in(dropout_key, index)
            )
            updated, statistics = dict(updated), updated.get("batch_stats", {})
            updated.pop("batch_stats", None)
            return (statistics, jax.tree.map(jnp.add, total, grads)), (logits, losses, updated)

        begin = batch_stats, jax.tree.map(jnp.zeros_like, trained)
        rows = (jnp.arange(parts), *map(split, (inputs, targets, mask)))
        (batch_stats, total), (logits, losses, sown) = jax.lax.scan(step, begin, rows, unroll=parts if unroll else 1)
        updated = {"batch_stats": batch_stats} | jax.tree.map(join, sown)
        return total, (join(logits), join(losses), updated)

    return summed
