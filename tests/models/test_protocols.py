import inspect

import jax
import jax.numpy as jnp
import pytest

from cnn_jax import models
from cnn_jax.models.protocols import Backbone, InitialisedFromImages, Network, TransferNetwork


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_and_backbone_satisfies_its_protocol(name):
    network = models.build({"name": name}, 7, "bfloat16")
    assert isinstance(network, Network)
    assert (network.num_classes, network.dtype) == (7, jnp.bfloat16)
    assert inspect.signature(type(network).__call__).parameters["train"].kind is inspect.Parameter.KEYWORD_ONLY
    assert isinstance(network, TransferNetwork) == (name in models.BACKBONES)
    assert isinstance(network, InitialisedFromImages) == (name == "speednet")
    if name in models.BACKBONES:
        assert isinstance(models.BACKBONES[name](), Backbone)


def test_a_transfer_network_classifies_the_features_of_its_backbone():
    network = models.build({"name": "efficientnet_lite0", "hidden": (4,), "dropout": ()}, 7)
    images = jnp.ones((2, 32, 32, 3))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    assert all(network.backbone_name in tree for tree in variables.values())

    def both(variables):
        features = network.apply(variables, images, method="features")
        return features, network.apply(variables, features, train=False, method="classify")

    features, logits = jax.eval_shape(both, variables)
    assert features.shape == (2, network.network.num_features) and logits.shape == (2, 7)
