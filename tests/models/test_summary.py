import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax import rng
from cnn_jax.models.cnn import CNN
from cnn_jax.models.summary import model_table
from cnn_jax.models.trainable import Partition

FIELDS = {"num_classes": 10, "widths": (4,), "convs_per_block": 1, "hidden": ()}
MODEL = CNN(**FIELDS)
CONV, HEAD = 3 * 3 * 3 * 4 + 4, 4 * 4 * 4 * 10 + 10


def variables():
    return MODEL.init(rng.root(0), jnp.zeros((1, 8, 8, 3)), train=False)


def test_model_table_counts_parameters_and_operations():
    table = model_table(MODEL, variables(), (8, 8))
    assert "conv1_1/kernel" in table and "head/bias" in table
    assert f"Total: {CONV + HEAD:,}\n" in table
    assert "million FLOPs per image" in table


def test_operations_are_those_of_the_compiled_program_where_jax_has_no_others(monkeypatch):
    def missing(self):
        raise NotImplementedError

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", missing)
    assert "million FLOPs per image" in model_table(MODEL, variables(), (8, 8))


def test_model_table_tells_trained_from_frozen_parameters_and_sums_up_large_networks_by_module():
    labels = Partition.of(variables(), "head").labels
    assert f"Total: {CONV + HEAD:,}, trained: {HEAD:,}\n" in model_table(MODEL, variables(), (8, 8), labels)
    deep = {"params": {"outer": variables()["params"]}}
    table = model_table(_Nested(), deep, (8, 8), {"outer": labels}, most_rows=3)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    assert ["outer/conv1_1", "2 arrays", str(CONV), "frozen"] in rows


class _Nested(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return CNN(**FIELDS, name="outer")(images, train=train)
