"""The numbers of each layer, compared with NumPy's, and that they leave training as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from test_step import make, narrow

from cnn_jax import rng
from cnn_jax.training.metrics import summarise

LAYERS = ["conv1_1", "conv2_1", "dense1"]


def with_diagnostics(name, **model):
    config = narrow(name, **model)
    config.diagnostics = True
    return config


def test_norms_and_activations_are_those_of_numpy():
    state, step = make(with_diagnostics("baseline"))
    state.params["conv1_1"]["bias"] = jnp.array([-100.0, 0.1, 0.1, 0.1])  # the first channel is dead
    batch = make_batch(16)
    after, metrics = jax.jit(step)(state, batch, rng.root(0))
    found = summarise(metrics)
    grads, (logits, _, _) = jax.grad(step.loss(state, batch, rng.root(0)), has_aux=True)(state.params)
    outputs = {"head": np.asarray(logits)}
    targets = jax.nn.one_hot(batch["label"], 10)
    inputs = step.inputs.train(batch, targets, rng.root(0), state.step, 0)[0]
    _, sown = step.model.apply({"params": state.params}, inputs, train=False, mutable=["intermediates"])
    outputs |= {layer: np.asarray(sown["intermediates"][f"relu_{layer}"][0]) for layer in LAYERS}
    expected = {}
    for layer, output in outputs.items():
        before, gradient = (np.asarray(tree[layer]["kernel"]) for tree in (state.params, grads))
        change = np.asarray(after.params[layer]["kernel"]) - before
        expected |= {
            f"grad_norm/{layer}": np.sqrt((gradient**2).sum()),
            f"weight_norm/{layer}": np.sqrt((before**2).sum()),
            f"update_ratio/{layer}": np.sqrt((change**2).sum() / (before**2).sum()),
            f"activation_mean/{layer}": output.mean(),
            f"activation_std/{layer}": output.std(),
        }
        if layer != "head":
            expected[f"dead_relu/{layer}"] = (output.reshape(-1, output.shape[-1]).max(0) == 0).mean()
    assert expected["dead_relu/conv1_1"] == 0.25
    diagnostics = {name: value for name, value in found.items() if "/" in name}
    assert diagnostics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(diagnostics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["baseline", "batchnorm"])
def test_diagnostics_change_no_number_of_training(name):
    """With the ladder's widths, so that its fast convolutions take part."""
    ends = []
    for diagnostics in (False, True):
        config = narrow(name, widths=(32, 64))
        config.diagnostics = diagnostics
        state, step = make(config)
        step = jax.jit(step)
        for seed in range(3):
            state, metrics = step(state, make_batch(8, seed=seed), rng.root(0))
        ends.append((state, summarise(metrics)["loss"]))
    jax.tree.map(np.testing.assert_array_equal, *ends)
