"""The variables that a run starts from: random, or a pretrained backbone with a random head."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from cnn_jax import rng
from cnn_jax.models import pretrained
from cnn_jax.models.protocols import InitialisedFromImages, Network, TransferNetwork
from cnn_jax.transforms.preprocess import Preprocessing

RANDOM = "random"  # in place of weights: a backbone that was never trained


def draw(
    model: Network, key: PRNGKeyArray, inputs: Float[Array, "1 ..."], method: str = "__call__"
) -> dict[str, PyTree]:
    """Returns random variables, {params, batch_stats}, of the parts of a network that a method uses.

    Args:
      model: the network.
      key: the run's root key, whose stream "init" is used.
      inputs: one example; only its shape matters.
      method: of the network.
    """
    return model.init(rng.stream(key, "init"), inputs, train=False, method=method)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Makes the variables that a run starts from.

    Attributes:
      model: the network.
      preprocess: of the training images.
      image_size: height and width of what the network sees.
      backbone: the name of the backbone, where weights are loaded.
      weights: "random", or the source of the backbone's weights (see `cnn_jax.models.pretrained.load`).
    """

    model: Network
    preprocess: Preprocessing
    image_size: tuple[int, int]
    backbone: str = ""
    weights: str = RANDOM

    def random(self, key: PRNGKeyArray) -> dict[str, PyTree]:
        """Returns random variables of the whole network; pure, so that shapes can be had without computing."""
        return draw(self.model, key, jnp.zeros((1, *self.image_size, 3)))

    def __call__(self, seeds: range, images: UInt8[np.ndarray, "n height width 3"]) -> list[dict[str, PyTree]]:
        """Returns the variables of each seed.

        Args:
          seeds: of the runs.
          images: training images, at which the initialisation of some networks looks.

        Raises:
          UserError: the weights of a backbone cannot be had.
        """
        make, complete = self._make(), self._complete(images)
        return [complete(make(rng.root(seed))) for seed in seeds]

    # Kept, so that a second call compiles nothing.
    @functools.cached_property
    def _draw(self) -> Callable[[PRNGKeyArray], dict[str, PyTree]]:
        return jax.jit(self.random)

    @functools.cached_property
    def _fit(self) -> Callable[[PyTree, Any], PyTree]:
        return jax.jit(self.fit)

    def _make(self) -> Callable[[PRNGKeyArray], dict[str, PyTree]]:
        if self.weights == RANDOM:
            return self._draw
        shapes = jax.eval_shape(self.random, rng.root(0))
        model = self.model
        assert isinstance(model, TransferNetwork)
        name = model.backbone_name
        of_backbone = {kind: tree[name] for kind, tree in shapes.items()}
        loaded = jax.device_put(pretrained.load(self.backbone, self.weights, of_backbone))
        # Initialised on features: the backbone, which is loaded, is then neither compiled nor drawn at random.
        features = jnp.zeros((1, model.network.num_features))
        draw_head = jax.jit(lambda key: draw(model, key, features, "classify"))

        def with_backbone(key):
            head = draw_head(key)
            return {kind: {name: tree, **head.get(kind, {})} for kind, tree in loaded.items()}

        return with_backbone

    def _complete(self, images: np.ndarray) -> Callable[[dict[str, PyTree]], dict[str, PyTree]]:
        """Returns what completes the variables where the network's initialisation looks at training images."""
        model = self.model
        if not isinstance(model, InitialisedFromImages):
            return lambda variables: variables
        first = images[: model.init_images]
        return lambda variables: {**variables, "params": self._fit(variables["params"], first)}

    def fit(self, params: PyTree, images: UInt8[Array, "n height width 3"]) -> PyTree:
        """Returns the parameters of a network whose initialisation looks at training images; pure."""
        assert isinstance(self.model, InitialisedFromImages)
        return self.model.init_from_images(params, self.preprocess(images))
