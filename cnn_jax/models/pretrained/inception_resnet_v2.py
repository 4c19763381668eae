"""The ImageNet weights of InceptionResNetV2 published by Keras."""

from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from cnn_jax import runtime
from cnn_jax.errors import UserError
from cnn_jax.models.inception_resnet_v2 import BLOCKS, STEM, Conv, conv_names
from cnn_jax.models.pretrained import Weight, keras_legacy, keras_v3
from cnn_jax.utils.download import fetch

FILE = "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/inception_resnet_v2/{FILE}"
MD5 = "d19885ff4a710c122648d3b5c3b684e4"

# The weights of each kind of layer, in Keras' order.
_WEIGHTS = {
    "conv": ("params/{}/kernel",),
    "bn": ("params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var"),
    "project": ("params/{}/kernel", "params/{}/bias"),
}


def published() -> Path:
    """Returns the path of the published file (219 MB), which is downloaded on first use.

    Raises:
      UserError: it cannot be downloaded, or the existing file is damaged.
    """
    remedy = "Download it by hand and pass --config.model.weights=PATH."
    return fetch(URL, runtime.cache_folder() / FILE, f"md5:{MD5}", remedy)


def read(path: str | Path) -> dict[str, Weight]:
    """Returns the weights of a file by their paths in our network, such as "params/block35_1/branch0/conv/kernel".

    The classifier is omitted: the layer "predictions" in the legacy format, "dense" in that of Keras 3.

    Args:
      path: a file written by Keras; its content tells whether it has the legacy format or that of Keras 3.

    Raises:
      UserError: the file cannot be read, or a layer is missing, unexpected, or has other weights.
    """
    is_v3 = keras_v3.matches(path)
    found = keras_v3.read(path) if is_v3 else keras_legacy.read(path)
    found.pop("dense" if is_v3 else "predictions", None)
    order = list(topological_order())
    names = _class_names(order) if is_v3 else list(found)[: len(order)]
    weights = {}
    for layer, name in zip_longest(order, names):
        if name not in found:
            missing = f"has no layer {name}" if name else f"ends after {len(found)} layers"
            raise UserError(f"{path} {missing}, where {layer} should be: it does not belong to InceptionResNetV2.")
        ours = [weight.format(layer) for weight in _WEIGHTS[layer.rsplit("/", 1)[-1]]]
        theirs = [Weight(value, f"{name}/{key}") for key, value in found[name].items()]
        if len(ours) != len(theirs):
            raise UserError(
                f"{path}: the layer {name} has {len(theirs)} weights, where {layer} has {len(ours)}: it does "
                "not belong to InceptionResNetV2, or its layers are in another order."
            )
        weights |= zip(ours, theirs)
    left = [name for name in found if name not in names]
    if left:
        raise UserError(f"{path} has a layer {left[0]}, which does not exist in InceptionResNetV2.")
    return weights


def topological_order() -> Iterator[str]:
    """Yields the layers with weights, such as "block35_1/branch0/conv", in the order of Keras' model.

    Keras sorts layers by their distance from the output, so branches are aligned at their ends; layers at the same
    distance are in the order of the branches.
    """
    for place in range(1, 1 + sum(isinstance(layer, Conv) for layer in STEM)):
        yield from _conv_bn(f"stem_{place}")
    for block, spec in BLOCKS.items():
        branches = conv_names(spec.chains)
        for distance in range(max(map(len, branches)), 0, -1):
            yield from _conv_bn(*(f"{block}/{names[-distance]}" for names in branches if len(names) >= distance))
        if spec.scale is not None:
            yield f"{block}/project"
    yield from _conv_bn("conv_7b")


def _conv_bn(*modules: str) -> list[str]:
    return [f"{module}/{layer}" for layer in ("conv", "bn") for module in modules]


def _class_names(layers: list[str]) -> list[str]:
    """Returns Keras 3's names of the layers: the class and a running number."""
    names, counts = [], Counter()
    for layer in layers:
        name = "batch_normalization" if layer.endswith("/bn") else "conv2d"
        names.append(f"{name}_{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return names
