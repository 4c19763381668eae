"""Maps of what a prediction depends on: Grad-CAM for regions, gradients with respect to the input for pixels."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from cnn_jax.inference import Classifier
from cnn_jax.inference.seeds import make_mean

_SMALLEST = 4  # side of a feature map; a smaller one says too little about where

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


def make_grad_cam(classifier: Classifier) -> Callable[[Any], Any] | None:
    """Returns a function from images, uint8 `[batch, height, width, 3]`, to maps `[batch, size_h, size_w]`.

    None for a network without a convolution whose feature map has at least 4 x 4 pixels.

    With A the feature maps of the last such layer and y the logit of the predicted class, a map is
    ReLU(sum over channels k of a_k A_k), where a_k is the mean of dy/dA_k over the pixels: the regions that speak for
    the class. It is enlarged to the size of the network's input and divided by its maximum. Of an ensemble, it is the
    mean of the members' maps. Less noisy than gradients of pixels, and less to compute: no layer below is
    differentiated.

    Source: Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391.

    Args:
      classifier: with a `model`; an exported program has none.
    """
    assert classifier.model
    network, _ = classifier.model
    blank = jnp.zeros((1, *classifier.input_size, 3), jnp.uint8)
    layers: list[tuple[int, tuple[int, ...]]] = []

    def apply(variables: Any, images: Any, change: Callable[[int, Any], Any]) -> Any:
        """Returns the logits, with the output of each layer with feature maps passed through `change`."""
        numbers = itertools.count()

        def intercept(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            output = call(*arguments, **options)
            layer = context.method_name == "__call__" and not isinstance(context.module, nn.Dropout)
            if layer and getattr(output, "ndim", 0) == 4:
                return change(next(numbers), output)
            return output

        with nn.intercept_methods(intercept):
            return network.apply(variables, classifier.preprocessing(images), train=False)

    def note(number: int, output: Any) -> Any:
        if min(output.shape[1:3]) >= _SMALLEST:
            layers.append((number, output.shape[1:]))
        return output

    jax.eval_shape(lambda variables: apply(variables, blank, note), classifier.members[0])
    if not layers:
        return None
    chosen, shape = layers[-1]

    @jax.jit
    def one(variables: Any, images: Any, classes: Any) -> Any:
        def logit(offset: Any) -> tuple[Any, Any]:
            features = []

            def change(number: int, output: Any) -> Any:
                if number == chosen:
                    output = output + offset.astype(output.dtype)
                    features.append(output.astype(jnp.float32))
                return output

            logits = apply(variables, images, change)
            return jnp.take_along_axis(logits, classes[:, None], axis=-1).sum(), features[0]

        offset = jnp.zeros((images.shape[0], *shape), jnp.float32)
        gradient, features = jax.grad(logit, has_aux=True)(offset)
        heat = jax.nn.relu((gradient.mean((1, 2), keepdims=True) * features).sum(-1))
        size = jax.eval_shape(classifier.preprocessing, images).shape[1:3]
        heat = jnp.nan_to_num(jax.image.resize(heat, (images.shape[0], *size), "bilinear"))
        largest = heat.max(axis=(1, 2), keepdims=True)
        return jnp.clip(heat / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny), 0, 1)

    def grad_cam(images: Any) -> Any:
        images = jnp.asarray(images)
        classes = jnp.asarray(classifier.log_probabilities(images)).argmax(-1)
        return sum(one(variables, images, classes) for variables in classifier.members) / len(classifier.members)

    return grad_cam


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
