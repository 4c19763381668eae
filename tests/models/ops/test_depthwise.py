"""The depthwise convolution against XLA's own."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax.models.ops.depthwise import depthwise

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}
# Height, width, rows and columns of the kernel, strides, padding.
CASES = [
    (8, 8, 3, 3, (1, 1), "SAME"),
    (8, 9, 3, 3, (2, 2), "SAME"),
    (9, 8, 5, 5, (2, 2), "SAME"),
    (7, 7, 5, 5, (1, 1), "SAME"),
    (1, 2, 5, 5, (2, 2), "SAME"),
    (9, 8, 3, 2, (3, 2), "VALID"),
    (6, 7, 2, 3, (1, 2), ((0, 3), (2, 0))),
]


def inputs(height, width, rows, columns):
    generator = np.random.RandomState(0)
    shapes = (2, height, width, 4), (rows, columns, 1, 4)
    return [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_convolution_of_xla_forward_and_backward(case):
    *sizes, strides, padding = case

    images, kernel = inputs(*sizes)

    def run(convolve):
        output, pull = jax.vjp(lambda x, w: convolve(x, w, strides, padding, **OPTIONS), images, kernel)
        return output, *pull(jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape))

    for ours, theirs in zip(run(depthwise), run(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rounds_bfloat16_once():
    images, kernel = (jnp.asarray(array, jnp.bfloat16) for array in inputs(8, 8, 5, 5))
    output = depthwise(images, kernel, (1, 1), "SAME", **OPTIONS)
    exact = depthwise(images.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), "SAME", **OPTIONS)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output, exact.astype(jnp.bfloat16))


def test_other_platforms_get_a_convolution():
    def convolutions(platform):
        images, kernel = inputs(8, 8, 3, 3)
        function = jax.jit(lambda x, w: depthwise(x, w, (1, 1), "SAME", **OPTIONS))
        exported = jax.export.export(function, platforms=[platform])(images, kernel)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cuda") == 1
    assert convolutions("cpu") == 0
