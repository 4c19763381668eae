"""Saliency maps: the gradient of the predicted class with respect to the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from cnn_jax.inference import Classifier
from cnn_jax.inference.seeds import make_mean

_GLOW = np.array([0.93, 0.36, 0.0])  # orange: colour-blind safe against grey


def make_saliency(classifier: Classifier) -> Callable[[Any], Any]:
    """Returns a jitted function from images, uint8 `[batch, height, width, 3]`, to maps `[batch, size_h, size_w]`.

    With x the scaled image, in [0, 1], and c the predicted class, a pixel of the map is the maximum over the three
    channels of |d log p(c | x) / dx|: how much a small change of the pixel changes the prediction. Each map is divided
    by its 99th percentile and clipped to 1, because of outliers. Of an ensemble, p is the mean of the probabilities.

    Source: Simonyan et al. 2014, Deep Inside Convolutional Networks, arXiv:1312.6034.

    Args:
      classifier: restored from a workdir; an exported one has no `model`.
    """
    assert classifier.model
    network, _ = classifier.model
    preprocessing = classifier.preprocessing

    def score(variables, scaled):
        return jax.nn.log_softmax(network.apply(variables, preprocessing.normalise(scaled), train=False))

    log_probabilities = make_mean(score, classifier.members, len(classifier.class_names))

    def predicted(scaled):
        # The gradient of the sum is the gradient per image: a prediction depends on its own image only.
        return log_probabilities(scaled).max(axis=-1).sum()

    @jax.jit
    def saliency(images):
        gradient = jax.grad(predicted)(preprocessing.scale(jnp.asarray(images)))
        strength = jnp.nan_to_num(jnp.abs(gradient).max(axis=-1))
        scale = jnp.percentile(strength, 99, axis=(1, 2), keepdims=True)
        return jnp.clip(strength / jnp.maximum(scale, jnp.finfo(strength.dtype).tiny), 0, 1)

    return saliency


def overlay(
    image: Float[np.ndarray, "height width 3"], strength: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the image in pale grey, blended with orange in proportion to the saliency.

    Args:
      image: the scaled image that the network takes, in [0, 1].
      strength: the saliency map, in [0, 1].
    """
    grey = 0.45 + 0.5 * image.mean(axis=-1, keepdims=True)
    amount = strength[..., None]
    return np.round(255 * (grey * (1 - amount) + _GLOW * amount)).astype(np.uint8)
