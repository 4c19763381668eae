"""From a batch to what the network is given: images, or features from a frozen backbone."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, PRNGKeyArray

from cnn_jax import rng
from cnn_jax.data.pipeline import Batch
from cnn_jax.transforms.augment import Augmentation, alternate, resize
from cnn_jax.transforms.mix import Mixing
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import NO_TTA, TTA

Targets = Float[Array, "batch classes"]
Logits = Float[Array, "batch classes"]


@runtime_checkable
class Inputs(Protocol):
    """How a batch becomes the network's input.

    Attributes:
      method: of the network, which is applied to the inputs.
    """

    method: ClassVar[str]

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
        ...

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """Returns the logits at test time, `network` being the network with its variables."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """Stored images: preprocessed, augmented for training, and with test-time augmentation for evaluation.

    Attributes:
      preprocess: what is done to every image.
      augment: what is done to each training image.
      mix: what is done to pairs of training images and their targets.
      tta: what is averaged at test time.
      side: side in pixels to which augmented training images are resized; 0 for no resizing.
    """

    preprocess: Preprocessing
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    mix: Mixing = dataclasses.field(default_factory=Mixing)
    tta: TTA = NO_TTA
    side: int = 0

    method: ClassVar[str] = "__call__"

    @classmethod
    def from_config(cls, config: Any, preprocess: Preprocessing, image_size: tuple[int, int]) -> "ImageInputs":
        """Builds it from `config.augment` and `config.eval`, for images that are preprocessed to `image_size`."""
        augment = Augmentation.from_config(config.augment, preprocess.mean, image_size)
        return cls(preprocess, augment, Mixing.from_config(config.augment), TTA.from_config(config.eval))

    @property
    def fixed(self) -> bool:
        """Whether the network is given the same input for an image in every epoch and at test time."""
        return not (self.augment.enabled or self.mix.enabled or self.tta.enabled)

    def train(
        self, batch: Batch, targets: Targets, key: PRNGKeyArray, step: Int[Array, ""], offset: int | Int[Array, ""] = 0
    ) -> tuple[Array, Targets]:
        """See `Inputs`."""
        mirrored = None
        if self.augment.alternate_flip:
            mirrored = alternate(rng.stream(key, "alternate_flip"), batch["index"], batch["epoch"])
        scaled = self.preprocess.scale(batch["image"])
        augment_key = rng.stream(key, "augment", step)
        images = self.augment(scaled, augment_key, offset, mirrored)
        if self.side:
            images = resize(images, self.side)
        images = self.preprocess.normalise(images)
        return self.mix(images, targets, rng.stream(augment_key, "mix"))

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """See `Inputs`."""
        return self.tta(network, self.preprocess(batch["image"]))


@dataclasses.dataclass(frozen=True)
class FeatureInputs:
    """Features that a frozen backbone has computed: there is nothing to augment."""

    method: ClassVar[str] = "classify"

    def train(
        self, batch: Batch, targets: Targets, key: PRNGKeyArray, step: Int[Array, ""], offset: int | Int[Array, ""] = 0
    ) -> tuple[Array, Targets]:
        """See `Inputs`."""
        return batch["features"], targets

    def predict(self, network: Callable[[Array], Logits], batch: Batch) -> Logits:
        """See `Inputs`."""
        return network(batch["features"])
