import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import rng
from cnn_jax.data.pipeline import Resident
from cnn_jax.models.cnn import CNN
from cnn_jax.training.evaluator import Evaluator
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.metrics import summarise
from cnn_jax.training.step import EvalStep, cross_entropy
from cnn_jax.transforms.preprocess import Preprocessing

MODEL = CNN(10, widths=(3,), convs_per_block=1, hidden=(), batch_norm=True)


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.RandomState(0)
    images = generator.randint(0, 256, (53, 8, 8, 3)).astype(np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(generator.randint(0, 10, 53), jnp.int32)}


@pytest.mark.parametrize("batch_size", [1, 7, 52, 53, 54, 200])
def test_does_not_depend_on_the_batch_size(arrays, batch_size):
    variables = MODEL.init(rng.root(0), jnp.zeros((1, 8, 8, 3)), train=False)
    metrics = Evaluator(EvalStep(MODEL, ImageInputs(Preprocessing())), batch_size)(variables, Resident(arrays))
    logits = MODEL.apply(variables, arrays["image"].astype(jnp.float32) / 255, train=False)
    assert int(metrics.accuracy.count) == 53
    assert int(metrics.accuracy.total) == int((logits.argmax(-1) == arrays["label"]).sum())
    np.testing.assert_allclose(summarise(metrics)["loss"], cross_entropy(logits, arrays["label"]).mean(), rtol=1e-5)
