import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.models import layers


@pytest.fixture
def images():
    return jnp.asarray(np.random.RandomState(0).standard_normal((4, 2, 3, 3, 5)), jnp.float32)


def test_batch_statistics_are_averaged_over_the_batch_axis_alone(images):
    layer = layers.BatchNorm(momentum=0.9)
    variables = layer.init(jax.random.key(0), images[0], use_running_average=True)

    def apply(x):
        return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    def apply_over(axis):
        def mapped(x):
            with layers.batch_axis(axis):
                return apply(x)

        return jax.pmap(mapped, axis_name="devices")(images)

    whole, statistics = apply(images.reshape(-1, *images.shape[2:]))
    parts, shared = apply_over("devices")
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, [b] * 4, atol=1e-6), shared, statistics)
    own, _ = apply_over(None)  # the axis of the previous call is no longer set
    np.testing.assert_allclose(own[1], apply(images[1])[0], atol=1e-5)
    assert jnp.abs(own - parts).max() > 0.1


def test_conv_bn_updates_the_statistics_by_a_hundredth():
    layer = layers.ConvBN(4, (3, 3), 2)
    images = jnp.asarray(np.random.RandomState(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    variables = layer.init(jax.random.key(0), images, train=False)
    _, updated = layer.apply(variables, images, train=True, mutable=["batch_stats"])
    maps = jax.lax.conv_general_dilated(
        images,
        variables["params"]["conv"]["kernel"],
        (2, 2),
        ((0, 1), (0, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    statistics = updated["batch_stats"]["bn"]
    np.testing.assert_allclose(statistics["mean"], 0.01 * maps.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.99 + 0.01 * maps.var((0, 1, 2)), rtol=1e-5)
