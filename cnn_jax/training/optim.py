"""Optimizers and learning-rate schedules, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from cnn_jax.errors import UserError
from cnn_jax.training import muon


def make_schedule(config: Any, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      config: `config.optimizer`: learning_rate, schedule ("constant", or "linear" or "cosine" down to zero) and
        warmup_epochs (a linear rise from zero).
      total_steps: the step at which the schedule ends.
      steps_per_epoch: to convert epochs.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(total_steps - warmup, 1)
    decays = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, decay_steps),
    }
    decay = decays[config.schedule]()
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: Any, schedule: optax.Schedule, factors: PyTree | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optimizer` describes.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101): it is multiplied by the learning rate but
    never enters the moments. It spares biases and BatchNorm's scale.

    Args:
      config: `config.optimizer`.
      schedule: the learning rate as a function of the step.
      factors: multiplies the learning rate of each parameter: a tree of numbers like the parameters, with None where
        one is not trained; None for 1 everywhere.

    Raises:
      UserError: no such optimizer.
    """
    rules = {
        # Keras' and PyTorch's momentum: the velocity sums gradients, it does not average them.
        "sgd": lambda: optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity(),
        "adam": lambda: optax.scale_by_adam(
            b1=config.momentum, b2=config.b2, eps=config.epsilon, nesterov=config.nesterov
        ),
        "muon": lambda: muon.scale_by_muon(
            config.muon.momentum, config.muon.steps, rest=config.momentum, nesterov=config.nesterov
        ),
    }
    if config.name not in rules:
        raise UserError(f"config.optimizer.name is {config.name!r}; the optimizers are: {', '.join(rules)}.")
    chain = [rules[config.name]()]
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
