"""From a batch to what the network is given: images, or features from a frozen backbone."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnn_jax import rng
from cnn_jax.data.pipeline import Batch
from cnn_jax.transforms.augment import Augmentation, alternate
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import ITSELF, Views

Targets = Float[Array, "batch classes"]
Logits = Float[Array, "batch classes"]


@runtime_checkable
class Inputs(Protocol):
    """How a batch becomes the network's input."""

    def train(
        self, batch: Batch, targets: Targets, key: PRNGKeyArray, step: Int[Array, ""], offset: int | Int[Array, ""]
    ) -> tuple[Array, Targets]:
        """Returns the network's inputs for training, and the targets, which augmentation may change.

        Args:
          batch: a batch, or one device's part of it.
          targets: the probabilities of the classes to learn.
          key: the run's root key.
          step: the training step.
          offset: the position of the first example in the global batch.
        """

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """Returns the logits at test time, `network` being the network with its variables."""


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """Stored images: preprocessed, augmented for training, and with test-time augmentation for evaluation."""

    preprocess: Preprocessing
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    tta: Views = ITSELF

    def train(
        self, batch: Batch, targets: Targets, key: PRNGKeyArray, step: Int[Array, ""], offset: int | Int[Array, ""] = 0
    ) -> tuple[Array, Targets]:
        """See `Inputs`."""
        mirrored = None
        if self.augment.alternate_flip:
            mirrored = alternate(rng.stream(key, "alternate_flip"), batch["index"], batch["epoch"])
        scaled = self.preprocess.scale(batch["image"])
        images = self.augment(scaled, rng.stream(key, "augment", step), offset, mirrored)
        return self.preprocess.normalise(images), targets

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """See `Inputs`."""
        return self.tta(network, self.preprocess(batch["image"]))


@dataclasses.dataclass(frozen=True)
class FeatureInputs:
    """Features that a frozen backbone has computed: there is nothing to augment."""

    def train(
        self, batch: Batch, targets: Targets, key: PRNGKeyArray, step: Int[Array, ""], offset: int | Int[Array, ""] = 0
    ) -> tuple[Array, Targets]:
        """See `Inputs`."""
        return batch["features"], targets

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """See `Inputs`."""
        return network(batch["features"])
