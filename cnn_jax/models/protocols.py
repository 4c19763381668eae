"""What a network must offer, and what it may offer.

Networks are `flax.linen` modules. Nothing has to be inherited from these protocols: a class that has the attributes
and methods of one satisfies it, and `isinstance` tells whether an object does.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

Images = Float[Array, "batch height width 3"]
Features = Float[Array, "batch features"]
Logits = Float[Array, "batch classes"]


@runtime_checkable
class Network(Protocol):
    """A classifier of images.

    Its parameters are in the collection "params", the running statistics of its BatchNorms in "batch_stats", both
    float32; dropout draws from the stream "dropout". A network may sow the outputs of ReLUs into the collection
    "intermediates" as "relu_LAYER"; `config.diagnostics` records their statistics.

    Attributes:
      num_classes: number of logits.
      dtype: type in which the layers compute.

    The other fields of the class are the keys of `config.model`.
    """

    num_classes: int
    dtype: Any

    def __call__(self, images: Images, *, train: bool) -> Logits:
        """Returns logits, float32, of preprocessed images.

        Args:
          images: scaled, resized and normalised.
          train: whether dropout acts and BatchNorm uses, and updates, the statistics of the batch.
        """
        ...

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """See `flax.linen.Module`."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """See `flax.linen.Module`."""


@runtime_checkable
class InitialisedFromImages(Protocol):
    """Optional: a network whose initial parameters depend on training images.

    Attributes:
      init_images: number of training images that `init_from_images` needs; fewer where there are fewer.
    """

    init_images: ClassVar[int]

    def init_from_images(self, params: PyTree, images: Images) -> PyTree:
        """Returns initial parameters, from random ones and preprocessed images; pure.

        Args:
          params: of this network, of one seed or with a leading seed axis.
          images: the first `init_images` training images.
        """
        ...


@runtime_checkable
class Backbone(Protocol):
    """A feature extractor with published weights (see `cnn_jax.models.pretrained`); `dtype` is its only field.

    Attributes:
      num_features: number of features per image.
      mean: subtracted from each channel of the images that it was trained on, in units of [0, 1].
      std: each channel was divided by it, in units of [0, 1].
    """

    num_features: ClassVar[int]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    def __call__(self, images: Images, *, train: bool) -> Features:
        """Returns features, float32, of normalised images; `train` as in `Network`."""
        ...


@runtime_checkable
class TransferNetwork(Network, Protocol):
    """Optional: a network that consists of a backbone and a classifier of its features.

    Where the backbone is frozen and images are not augmented, training computes the features once and calls
    `classify`, with `model.apply(variables, features, train=True, method="classify")`.

    Attributes:
      network: class of the backbone.
      backbone_name: name of the backbone's module: the key of its variables in every collection.
    """

    network: type[Backbone]
    backbone_name: ClassVar[str]

    def features(self, images: Images) -> Features:
        """Returns the backbone's features in inference mode, float32."""
        ...

    def classify(self, features: Features, *, train: bool) -> Logits:
        """Returns logits, float32, from features."""
        ...
