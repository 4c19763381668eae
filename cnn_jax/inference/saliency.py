"""Which pixels mattered: the gradient of an answer with respect to what the network sees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from cnn_jax.inference import Classifier

_GLOW = np.array([0.93, 0.36, 0.0])  # orange, also told from grey by who sees no red or no green


def make_saliency(classifier: Classifier) -> Callable[[Any], Any]:
    """Returns a compiled function from images, uint8 `[batch, height, width, 3]`, to maps `[batch, size_h, size_w]`.

    With s the image as the network sees it, in [0, 1], and c the most probable class, a pixel of the map is the
    largest of |d log p(c | s) / d s| over its three channels: how much the smallest change there would change the
    answer. A map is divided by its 99th percentile and cut off at 1, because single pixels stand out.

    Source: Simonyan et al. 2014, Deep Inside Convolutional Networks, arXiv:1312.6034.

    Args:
      classifier: with its `model`; an exported one has none.
    """
    network, variables = classifier.model
    preprocessing = classifier.preprocessing

    def answer(seen):
        logits = network.apply(variables, preprocessing.normalise(seen), train=False)
        # The sum over images keeps their gradients apart: no image has a part in another's answer.
        return jax.nn.log_softmax(logits).max(axis=-1).sum()

    @jax.jit
    def saliency(images):
        gradient = jax.grad(answer)(preprocessing.scale(jnp.asarray(images)))
        strength = jnp.nan_to_num(jnp.abs(gradient).max(axis=-1))
        scale = jnp.percentile(strength, 99, axis=(1, 2), keepdims=True)
        return jnp.clip(strength / jnp.maximum(scale, jnp.finfo(strength.dtype).tiny), 0, 1)

    return saliency


def overlay(
    seen: Float[np.ndarray, "height width 3"], strength: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the image in pale grey, and in orange where the map is strong.

    Args:
      seen: the image as the network sees it, in [0, 1].
      strength: in [0, 1].
    """
    grey = 0.45 + 0.5 * seen.mean(axis=-1, keepdims=True)
    amount = strength[..., None]
    return np.round(255 * (grey * (1 - amount) + _GLOW * amount)).astype(np.uint8)
