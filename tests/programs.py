"""Computes the compiled programs of a run on small fixed inputs, for tests/test_programs.py to compare.

python tests/programs.py ours|plain|float64 OUTPUT.npz [PROGRAM...]

- ours: in a process set up by `runtime.prepare`, as the commands are.
- plain: by XLA alone, without YNNPACK and without the kernels of `cnn_jax.models.ops`.
- float64: as plain, in double precision except for what the package casts to float32, such as logits, and for
  `SINGLE_PRECISION`.

The file has an array for each leaf of a result, under PROGRAM:PATH.
"""

import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment")
IMAGES, VALIDATION = 50, 20
SIZES = {"batch_size": 32, "eval_batch_size": 16, "steps_per_call": 1}
EXPORTED_BATCHES = (1, 5, 32)
SPEED_RUN = {"model__widths": (16,), "dtype": "float32", "average__every": 1}
BACKBONE = {"model__weights": "random", "data__image_size": 64}
# XLA takes twenty times as long for grouped convolutions in float64.
SINGLE_PRECISION = {"features"}


def without_kernels():
    """Leaves to XLA what `cnn_jax.models.ops` has kernels for; to be called before the networks are imported."""
    import flax.linen as nn
    import jax

    jax.lax.platform_dependent = lambda *operands, default, **of_platforms: default(*operands)

    from cnn_jax.models.ops import pool

    pool.max_pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))


@contextlib.contextmanager
def double_precision():
    """Networks compute in float64; what is drawn at random stays the same, although defaults have 64 bits too."""
    import jax
    import jax.numpy as jnp

    from cnn_jax import models

    bernoulli, randint = jax.random.bernoulli, jax.random.randint
    with (
        jax.enable_x64(),
        mock.patch.dict(models.DTYPES, float32=jnp.float64),
        mock.patch("jax.random.bernoulli", lambda key, p=0.5, shape=None: bernoulli(key, np.float32(p), shape)),
        mock.patch("jax.random.randint", functools.partial(randint, dtype=jnp.int32)),
    ):
        yield


def make_experiment(stage, features=None, **changes):
    """The experiment of a stage on random images of 32x32 pixels; `changes` are keys of its config, __ for dots."""
    from cnn_jax import config as config_lib
    from cnn_jax.data.splits import ArraySource, Dataset, Split
    from cnn_jax.training.experiment import Experiment

    config = config_lib.load(ROOT / "configs" / f"{stage}.py")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in (SIZES | changes).items()})
    config_lib.validate(config)
    generator, names = np.random.RandomState(0), tuple("0123456789")
    # Squares, because BatchNorm amplifies the rounding of pure noise, and noise, because equal neighbours are ties for
    # max-pooling.
    squares = generator.randint(0, 192, (IMAGES, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    images = (squares + generator.randint(0, 64, squares.shape)).astype(np.uint8)
    labels = generator.randint(0, 10, IMAGES).astype(np.int32)
    source = ArraySource(names, labels, images)
    train, validation = (Split(source, np.arange(count)) for count in (IMAGES, VALIDATION))
    return Experiment(config, Dataset("random", names, train, validation, validation), features)


def start(experiment):
    """The state at step 0, with variables that are random everywhere: no bias is zero, no scale is one."""
    import jax

    generator = np.random.RandomState(0)

    def draw(path, leaf):
        values = generator.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            values *= (2 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            values = values / 10 + (path[-1].key in ("scale", "var"))
        return values.astype(np.float32).astype(np.float64)

    variables = jax.tree.map_with_path(draw, experiment.target(0).variables)
    return experiment.phases[0].step.init(jax.device_put(variables))


def initialisation(stage, **changes):
    """The parameters at step 0; the whitening kernel times its transpose, because eigenvectors have no sign."""
    params = dict(make_experiment(stage, **changes).init().params)
    if "whiten" in params:
        kernel = params["whiten"]["kernel"].reshape(12, 24)
        params["whiten"] = params["whiten"] | {"kernel": kernel @ kernel.T}
    return params


def step(stage, **changes):
    """What a train step leaves: in the optimizer its gradient, in the statistics a multiple of the batch's."""
    import jax

    experiment = make_experiment(stage, **changes)
    state = start(experiment)
    state = state.replace(batch_stats=jax.tree.map(lambda x: 0 * x, state.batch_stats))
    _, state, metrics = experiment.train_chunk(state, 0)
    return {
        "metrics": metrics,
        "statistics": state.batch_stats,
        "optimizer": state.opt_state,
        "params": state.params,
        "average": state.average,
    }


def evaluation(**views):
    """The scores of a network on images that do not fill the last batch."""
    experiment = make_experiment("batchnorm", **views)
    return {"metrics": experiment.evaluate(start(experiment).variables, "validation")}


def features():
    """Features of a frozen backbone, and what a step of the head on them leaves."""
    from cnn_jax.training.feature_cache import FeatureCache

    with tempfile.TemporaryDirectory() as folder:
        experiment = make_experiment("transfer_lite", Path(folder), **BACKBONE)
        _, state, metrics = experiment.train_chunk(start(experiment), 0)
        cache = FeatureCache(
            Path(folder), experiment.model, state.variables, experiment.preprocess, SIZES["eval_batch_size"]
        )
        return {
            "features": cache.get(experiment.splits.dataset.train.images(), "train"),
            "metrics": metrics,
            "optimizer": state.opt_state,
            "params": state.params["head"],
        }


def answers():
    """Log-probabilities of an exported model for batches of several sizes, and saliency maps of its network."""
    import jax

    from cnn_jax.inference import Classifier, artifact
    from cnn_jax.inference.classifier import make_scorer
    from cnn_jax.inference.saliency import make_saliency

    experiment = make_experiment("batchnorm")
    names, images, variables = (
        experiment.splits.dataset.class_names,
        experiment.splits.dataset.train.images(),
        start(experiment).variables,
    )
    scorer = jax.jit(make_scorer(experiment.model, variables, experiment.preprocess))
    model = (experiment.model, variables)
    classifier = Classifier(names, (32, 32), experiment.preprocess, scorer, "", 0, experiment.metadata, model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.jaxexport"
        artifact.write(path, scorer, experiment.metadata, 0)
        _, log_probabilities = artifact.read(path)
        exported_model = {str(size): log_probabilities(images[:size]) for size in EXPORTED_BATCHES}
    return {"exported": exported_model, "saliency": make_saliency(classifier)(images[:VALIDATION])}


PROGRAMS = {
    "initialisation": functools.partial(initialisation, "batchnorm"),
    "initialisation of the speed run": functools.partial(initialisation, "speedrun", **SPEED_RUN),
    **{stage: functools.partial(step, stage) for stage in STAGES},
    "speedrun": functools.partial(step, "speedrun", **SPEED_RUN),
    "evaluation": evaluation,
    "evaluation of views": functools.partial(evaluation, eval__mirror=True, eval__shift=2),
    "features": features,
    "answers": answers,
}


def main(kind, output, *names):
    if kind == "ours":
        from cnn_jax import runtime

        runtime.prepare()
    else:
        os.environ["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type="  # an empty list
        without_kernels()
    import jax

    arrays = {}
    for name in names or PROGRAMS:
        double = kind == "float64" and name not in SINGLE_PRECISION
        with double_precision() if double else contextlib.nullcontext():
            leaves = jax.tree.leaves_with_path(jax.device_get(PROGRAMS[name]()))
        for path, leaf in leaves:
            arrays[f"{name}:{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
