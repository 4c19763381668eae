"""The train step and the evaluation step: pure functions of arrays.

`train_step(state, batch, key) -> (state, metrics)` runs as it is under `jax.jit` on one device or with sharded
arguments, under `jax.pmap` with an axis name, and under `jax.vmap` over (state, batch, key).
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from cnn_jax import rng
from cnn_jax.models import layers
from cnn_jax.models.trainable import Partition
from cnn_jax.training.ema import Average
from cnn_jax.training.metrics import Classification, TrainMetrics
from cnn_jax.training.state import TrainState
from cnn_jax.transforms.augment import Augmentation, alternate
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import ITSELF, Views


class Batch(TypedDict):
    """What the steps take: stored images, labels, and a mask that is false where an example is padding.

    Evaluation and metrics skip padding. The train step does so in part: its loss is the mean over the real examples,
    but BatchNorm's batch statistics, and so every output and gradient, include the padding. The training batches of a
    run are always full (see `cnn_jax.training.plan.Schedule`).

    Instead of images there may be features from a frozen backbone (see `cnn_jax.training.feature_cache`).
    """

    image: NotRequired[UInt8[Array, "batch height width 3"]]
    features: NotRequired[Float[Array, "batch features"]]
    label: Int[Array, " batch"]
    mask: Bool[Array, " batch"]
    index: NotRequired[Int[Array, " batch"]]  # each example's number in its split
    epoch: NotRequired[Int[Array, " batch"]]  # which epoch of training it is in


def gather(arrays: dict[str, Any], row: dict[str, Any]) -> Batch:
    """Picks a batch out of a data set on the device.

    Args:
      arrays: "image" `[n, height, width, 3]` or "features" `[n, features]`, and "label" `[n]`.
      row: "index" int32 `[batch]` and "mask" bool `[batch]`; in training also "epoch" int32 `[batch]`.
    """
    return {name: array[row["index"]] for name, array in arrays.items()} | row


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    image_size: tuple[int, int],
    partition: Partition | None = None,
) -> TrainState:
    """Returns the state at step 0.

    Args:
      model: the network.
      optimizer: makes `opt_state`.
      key: the run's root key; the stream "init" is drawn from it.
      image_size: height and width of what the network sees.
      partition: which parameters are trained; None for all.
    """
    return begin(draw(model, key, jnp.zeros((1, *image_size, 3))), optimizer, partition)


def draw(
    model: nn.Module, key: PRNGKeyArray, inputs: Float[Array, "1 ..."], method: str | None = None
) -> dict[str, PyTree]:
    """Returns new variables, {params, batch_stats}, of what the network calls for such inputs.

    Args:
      model: the network.
      key: the run's root key; the stream "init" is drawn from it.
      inputs: one; only its shape matters.
      method: of the network that takes them; None for `__call__`.
    """
    return model.init(rng.stream(key, "init"), inputs, train=False, method=method)


def begin(
    variables: Mapping[str, PyTree],
    optimizer: optax.GradientTransformation,
    partition: Partition | None = None,
    average: Average | None = None,
) -> TrainState:
    """Returns the state at step 0 of a network with these variables, {params, batch_stats}: see `init_state`."""
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(partition.trained(params) if partition else params),
    )
    return state.replace(average=average.begin(state.current)) if average else state


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float = 0.0
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of each example, in nats.

    `smoothing` moves that share of the target to the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567).
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    preprocess: Preprocessing,
    augment: Augmentation,
    partition: Partition | None = None,
    label_smoothing: float = 0.0,
    diagnostics: bool = False,
    axis_name: str | None = None,
    average: Average | None = None,
) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, clu_metrics.Collection]]:
    """Builds `train_step(state, batch, key) -> (state, metrics)`; `key` is the run's root key.

    Batches should be full: BatchNorm does not skip padding (see `Batch`).

    Args:
      model: the network.
      optimizer: turns gradients into updates.
      preprocess: what is done to every image, also at test time.
      augment: what is done to training images alone.
      partition: which parameters are trained, and which BatchNorms keep their statistics; None for all and none.
      label_smoothing: see `cross_entropy`.
      diagnostics: also report gradient norms and dead ReLUs a layer.
      axis_name: the mapped axis over which the batch is spread, under `jax.pmap`.
      average: how `state.average` is kept; None where there is none.
    """
    mutable = ["batch_stats", "intermediates"] if diagnostics else ["batch_stats"]
    split, merge, still = (lambda params: params), (lambda trained, params: trained), contextlib.nullcontext
    if partition:
        split, merge, still = partition.trained, partition.merge, partition.apply

    def train_step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, clu_metrics.Collection]:
        augment_key, dropout_key = (rng.stream(key, name, state.step) for name in ("augment", "dropout"))
        count, offset = batch["mask"].sum(), 0
        if axis_name is not None:
            device = jax.lax.axis_index(axis_name)
            offset = device * batch["mask"].shape[0]
            dropout_key = jax.random.fold_in(dropout_key, device)
            count = jax.lax.psum(count, axis_name)
        method = None
        if "features" in batch:
            inputs, method = batch["features"], "classify"
        else:
            mirrored = None
            if augment.alternate_flip:
                mirrored = alternate(rng.stream(key, "alternate_flip"), batch["index"], batch["epoch"])
            inputs = preprocess.normalise(augment(preprocess.scale(batch["image"]), augment_key, offset, mirrored))

        def loss_fn(trained):
            variables = {"params": merge(trained, state.params), "batch_stats": state.batch_stats}
            with still(), layers.batch_axis(axis_name):
                logits, updated = model.apply(
                    variables, inputs, train=True, mutable=mutable, rngs={"dropout": dropout_key}, method=method
                )
            losses = cross_entropy(logits, batch["label"], label_smoothing)
            # Divided by the examples of all devices: the gradients of the parts then add up to that of the whole.
            return jnp.where(batch["mask"], losses, 0).sum() / count, (logits, losses, updated)

        trained = split(state.params)
        grads, (logits, losses, updated) = jax.grad(loss_fn, has_aux=True)(trained)
        if axis_name is not None:
            grads = jax.lax.psum(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics = TrainMetrics.single_from_model_output(
            logits=logits,
            labels=batch["label"],
            loss=losses,
            mask=batch["mask"],
            diagnostics=_diagnose(grads, updated) if diagnostics else {},
        )
        if axis_name is not None:
            metrics = jax.lax.psum(metrics, axis_name)
        state = state.replace(
            step=state.step + 1,
            params=merge(optax.apply_updates(trained, updates), state.params),
            batch_stats=updated.get("batch_stats", {}),
            opt_state=opt_state,
        )
        if average:
            mean, current = average.update(state.average, state.current, state.step)
            state = state.replace(average=mean, **current)
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module, *, preprocess: Preprocessing, views: Views = ITSELF
) -> Callable[[dict[str, PyTree], Batch], Classification]:
    """Builds `eval_step(variables, batch) -> metrics`, which counts the examples that the mask marks as real."""

    def eval_step(variables: dict[str, PyTree], batch: Batch) -> Classification:
        def predict(inputs, method=None):
            return model.apply(variables, inputs, train=False, method=method)

        # Of features there are no views: see `Phase.keeps_features`.
        logits = (
            predict(batch["features"], "classify")
            if "features" in batch
            else views(predict, preprocess(batch["image"]))
        )
        losses = cross_entropy(logits, batch["label"])
        return Classification.single_from_model_output(
            logits=logits, labels=batch["label"], loss=losses, mask=batch["mask"]
        )

    return eval_step


def _diagnose(grads: PyTree, updated: PyTree) -> dict[str, jax.Array]:
    """Gradient norm of each layer's kernel and share of its ReLUs that were zero on the whole batch."""
    kernels = {path[:-1]: grad for path, grad in flax.traverse_util.flatten_dict(grads).items() if path[-1] == "kernel"}
    norms = {f"grad_norm/{'/'.join(path)}": jnp.linalg.norm(grad) for path, grad in kernels.items() if grad is not None}
    sown = updated.get("intermediates", {})
    dead = {f"dead_relu/{n.removeprefix('dead_')}": v[0] for n, v in sown.items() if n.startswith("dead_")}
    return norms | dead
