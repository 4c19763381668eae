"""Optimizers and learning-rate schedules, from optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from cnn_jax.errors import UserError
from cnn_jax.training import muon

# Learning-rate schedules by the name of `config.optimizer.schedule`. Arguments: `config.optimizer`, the number of steps
# of the schedule without warm-up, and the steps per epoch. Returns the learning rate as a function of the step.
SCHEDULES: dict[str, Callable[[Any, int, float], optax.Schedule]] = {
    "constant": lambda config, steps, _: optax.constant_schedule(config.learning_rate),
    "linear": lambda config, steps, _: optax.linear_schedule(config.learning_rate, 0.0, steps),
    "cosine": lambda config, steps, _: optax.cosine_decay_schedule(config.learning_rate, steps),
    # Smith and Topin 2017, arXiv:1708.07120: rises in the first 30 % of the steps, then decays to almost zero.
    "onecycle": lambda config, steps, _: optax.cosine_onecycle_schedule(steps, config.learning_rate),
    "restarts": lambda config, steps, steps_per_epoch: cosine_restarts(
        config.learning_rate, steps, config.restarts.epochs * steps_per_epoch, config.restarts.factor
    ),
}


def make_schedule(config: Any, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      config: `config.optimizer`: learning_rate, schedule (one of `SCHEDULES`) and warmup_epochs (a linear rise from
        zero, before the schedule).
      total_steps: the step at which the schedule ends.
      steps_per_epoch: to convert epochs.

    Raises:
      UserError: there is a warm-up before schedule "onecycle", which has its own.
    """
    if config.warmup_epochs and config.schedule == "onecycle":
        raise UserError(
            f"config.optimizer.warmup_epochs is {config.warmup_epochs}, but the schedule onecycle has its own warm-up: "
            "set it to 0, or take another config.optimizer.schedule."
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    decay = SCHEDULES[config.schedule](config, max(total_steps - warmup, 1), steps_per_epoch)
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def cosine_restarts(peak: float, steps: int, first: float, factor: float) -> optax.Schedule:
    """Returns cosine decays to zero, each `factor` times as long as the one before; the last one may be cut off.

    Source: SGDR, Loshchilov and Hutter 2017, arXiv:1608.03983.

    Args:
      peak: the learning rate at the beginning of each decay.
      steps: the step at which the schedule ends.
      first: the steps of the first decay.
      factor: at least 1.
    """
    lengths, ends, length = [], [], max(first, 1.0)
    while not ends or ends[-1] < steps:
        lengths.append(max(round(length), 1))
        ends.append(sum(lengths))
        length *= factor
    return optax.join_schedules([optax.cosine_decay_schedule(peak, each) for each in lengths], ends[:-1])


# Update rules by the name of `config.optimizer.name`. Argument: `config.optimizer`. Returns a transformation of
# gradients into a direction; `make_optimizer` adds clipping, weight decay and the learning rate.
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    # The momentum of Keras and PyTorch: the velocity is a sum of gradients, not their average.
    "sgd": lambda config: optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity(),
    # With `weight_decay`, which is decoupled, this is AdamW.
    "adam": lambda config: optax.scale_by_adam(
        b1=config.momentum, b2=config.b2, eps=config.epsilon, nesterov=config.nesterov
    ),
    "muon": lambda config: muon.scale_by_muon(
        config.muon.momentum, config.muon.steps, config.momentum, config.nesterov, config.muon.batched
    ),
}
OPTIMIZERS["adamw"] = OPTIMIZERS["adam"]  # the common name


def make_optimizer(
    config: Any, schedule: optax.Schedule, factors: PyTree | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optimizer` describes.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101): it is multiplied by the learning rate but
    never enters the moments. It does not apply to biases and BatchNorm's scales.

    Args:
      config: `config.optimizer`.
      schedule: the learning rate as a function of the step.
      factors: multiplies the learning rate of each parameter: a tree of numbers like the parameters, with None where
        one is not trained; None for 1 everywhere.
    """
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    chain.append(OPTIMIZERS[config.name](config))
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=_is_kernel))
    if any(factor != 1 for factor in jax.tree.leaves(factors)):
        chain.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)))
    chain.append(optax.scale_by_learning_rate(schedule))
    if config.name == "muon" and config.muon.keep_norms:
        chain.append(muon.keep_norms())
    return optax.chain(*chain)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)
