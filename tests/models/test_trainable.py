"""Partitions into frozen and trained parameters, and train steps that follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax import config as config_lib
from cnn_jax import models, rng
from cnn_jax.errors import UserError
from cnn_jax.models.trainable import Partition, selects
from cnn_jax.training import optim
from cnn_jax.training.init import draw
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.metrics import summarise
from cnn_jax.training.step import TrainStep
from cnn_jax.transforms.preprocess import Preprocessing

BATCH = {
    "image": np.random.RandomState(0).randint(0, 256, (8, 16, 16, 3)).astype(np.uint8),
    "label": np.arange(8, dtype=np.int32),
    "mask": np.ones(8, bool),
}
VARIABLES = {
    "params": {
        "backbone": {
            "stem": {"conv": {"kernel": 1}, "bn": {"bias": 1}},
            "block8_1": {"project": {"kernel": 1, "bias": 1}},
            "block8_10": {"project": {"kernel": 1, "bias": 1}},
            "conv_7b": {"conv": {"kernel": 1}, "bn": {"bias": 1}},
        },
        "head": {"logits": {"kernel": 1, "bias": 1}},
    },
    "batch_stats": {"backbone": {"stem": {"bn": {"mean": 1}}, "conv_7b": {"bn": {"mean": 1}}}},
}


def chosen(pattern, **kwargs):
    """The modules, two levels deep, with trained parameters."""
    labels = Partition.of(VARIABLES, pattern, **kwargs).labels
    paths = {
        "/".join(p.key for p in path[:2]) for path, label in jax.tree.leaves_with_path(labels) if label != "frozen"
    }
    return sorted(path.removeprefix("backbone/") for path in paths)


def test_patterns_select_modules_by_name_or_path():
    assert chosen("head") == ["head/logits"]
    assert chosen("conv_7b|block8.*") == ["block8_1", "block8_10", "conv_7b"]
    assert chosen("block8_1") == ["block8_1"]
    assert chosen("backbone/stem") == ["stem"]
    assert chosen("bias") == ["block8_1", "block8_10", "conv_7b", "head/logits", "stem"]
    assert chosen("all") == ["block8_1", "block8_10", "conv_7b", "head/logits", "stem"]
    assert not selects("stem/backbone", ("backbone", "stem"))
    assert not selects("block", ("backbone", "block8_1"))


def test_a_pattern_that_selects_nothing_is_refused_with_a_list_of_modules():
    with pytest.raises(UserError, match=r"'haed' selects none.*backbone/stem.*head/logits"):
        Partition.of(VARIABLES, "haed")
    with pytest.raises(UserError, match=r"'hed' selects none"):
        Partition.of(VARIABLES, "all", (("hed", 0.1),))


def test_batch_norm_runs_in_inference_mode_where_it_is_frozen_also_after_unfreezing():
    stem, last = ("backbone", "stem", "bn"), ("backbone", "conv_7b", "bn")
    assert Partition.of(VARIABLES, "all").frozen_norms == set()
    assert Partition.of(VARIABLES, "head").frozen_norms == {stem, last}
    assert Partition.of(VARIABLES, "head|conv_7b").frozen_norms == {stem}
    later = Partition.of(VARIABLES, "all", previous=Partition.of(VARIABLES, "head|conv_7b"))
    assert later.frozen_norms == {stem}


def test_groups_multiply_the_learning_rate():
    groups = (("conv_7b", 0.5), ("backbone", 0.1))
    factors = Partition.of(VARIABLES, "head|backbone/conv_7b|backbone/stem", groups).factors(groups)
    assert factors["backbone"]["conv_7b"]["conv"]["kernel"] == 0.5
    assert factors["backbone"]["stem"]["conv"]["kernel"] == 0.1
    assert factors["head"]["logits"]["kernel"] == 1.0
    assert factors["backbone"]["block8_1"]["project"]["kernel"] is None


@pytest.fixture
def tiny():
    """Builds (state, train step, partition) of the small transfer network, for a pattern."""
    config = config_lib.load(ROOT / "tests" / "transfer_config.py")

    def make(trainable, groups=(), previous=None, optimizer=None):
        config.optimizer.update(optimizer or {})
        model = models.build(config.model, 10)
        variables = jax.eval_shape(lambda: model.init(rng.root(0), jnp.zeros((1, 16, 16, 3)), train=False))
        partition = Partition.of(variables, trainable, groups, previous)
        schedule = optim.make_schedule(config.optimizer, 100, 10)
        rule = optim.make_optimizer(config.optimizer, schedule, partition.factors(groups))
        train_step = TrainStep(model, rule, ImageInputs(Preprocessing()), partition, diagnostics=True)
        state = jax.jit(lambda key: train_step.init(draw(model, key, jnp.zeros((1, 16, 16, 3)))))(rng.root(0))
        return state, train_step, partition

    return make


def changed(before, after):
    """The names of leaves that are not bit-identical."""
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), before, after)
    return {"/".join(p.key for p in path) for path, equal in jax.tree.leaves_with_path(same) if not equal}


@pytest.mark.parametrize(
    "trainable, blocks", [("head", ()), ("head|block2.*", ("block2",)), ("all", ("block1", "block2"))]
)
def test_a_step_changes_what_is_trained_and_nothing_else(tiny, trainable, blocks):
    state, train_step, partition = tiny(trainable)
    after, _ = jax.jit(train_step)(state, BATCH, rng.root(0))
    trained = {f"head/{layer}/{leaf}" for layer in ("dense1", "logits") for leaf in ("kernel", "bias")}
    norms = {f"backbone/{block}_bn/{leaf}" for block in blocks for leaf in ("scale", "bias")}
    assert changed(state.params, after.params) == trained | norms | {f"backbone/{block}/kernel" for block in blocks}
    statistics = {f"backbone/{block}_bn/{leaf}" for block in blocks for leaf in ("mean", "var")}
    assert changed(state.batch_stats, after.batch_stats) == statistics
    # Adam: two moments per trained parameter, none for frozen ones.
    sizes = [x.size for x in jax.tree.leaves(partition.trained(state.params))]
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * sum(sizes)


def test_batch_norm_unfrozen_later_trains_but_keeps_its_statistics(tiny):
    _, _, first = tiny("head")
    state, train_step, _ = tiny("all", previous=first)
    after, _ = jax.jit(train_step)(state, BATCH, rng.root(0))
    assert changed(state.batch_stats, after.batch_stats) == set()
    assert "backbone/block1_bn/scale" in changed(state.params, after.params)


def test_frozen_layers_cost_no_gradient(tiny):
    """Two convolutions forward; backward, two for the kernels and one from the second to the first."""

    def convolutions(trainable):
        state, train_step, _ = tiny(trainable)
        return str(jax.make_jaxpr(train_step)(state, BATCH, rng.root(0))).count("conv_general_dilated[")

    assert convolutions("head") == 2
    assert convolutions("head|block2.*") == 3
    assert convolutions("all") == 5


def test_a_group_moves_by_its_factor(tiny):
    plain = {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0}
    moves = []
    for groups in ((), (("backbone", 0.25),)):
        state, train_step, _ = tiny("all", groups, optimizer=plain)
        after, _ = jax.jit(train_step)(state, BATCH, rng.root(0))
        moves.append(jax.tree.map(lambda a, b: np.asarray(b - a), state.params, after.params))
    whole, scaled = moves
    np.testing.assert_allclose(
        scaled["backbone"]["block1"]["kernel"], whole["backbone"]["block1"]["kernel"] / 4, atol=1e-7
    )
    np.testing.assert_allclose(scaled["head"]["logits"]["kernel"], whole["head"]["logits"]["kernel"], atol=1e-7)


def test_diagnostics_name_layers_that_are_trained(tiny):
    state, train_step, _ = tiny("head|block2.*")
    _, metrics = jax.jit(train_step)(state, BATCH, rng.root(0))
    norms = {name for name in summarise(metrics) if name.startswith("grad_norm/")}
    assert norms == {f"grad_norm/{layer}" for layer in ("backbone/block2", "head/dense1", "head/logits")}
