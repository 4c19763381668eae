"""A run, compiled: what a step, an evaluation and the state at step 0 are. Pure functions of (state, step)."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import models, rng
from cnn_jax.data.duplicates import Duplicates
from cnn_jax.data.splits import Dataset, Split
from cnn_jax.errors import UserError
from cnn_jax.models import pretrained
from cnn_jax.models.protocols import InitialisedFromImages
from cnn_jax.models.trainable import Partition
from cnn_jax.parallel import dispatch, lanes
from cnn_jax.training import step
from cnn_jax.training.evaluator import make_evaluator
from cnn_jax.training.feature_cache import FeatureCache
from cnn_jax.training.metrics import NAMES, summarise
from cnn_jax.training.phases import Phase
from cnn_jax.training.plan import Schedule
from cnn_jax.transforms.augment import Augmentation
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import Views
from cnn_jax.workdir.checkpoint import FINGERPRINT

SPLITS = ("train", "validation", "test")
RANDOM = "random"  # in the place of weights: a backbone that was never trained


class Trainer:
    """A configuration and a data set, compiled.

    Attributes:
      dataset: the data.
      schedule: which step does what.
      model: the network.
      image_size: height and width of what it sees.
      metadata: what inference must know of the run; JSON.
      duplicates: by split that has been read, one line per split with which it shares images.
    """

    def __init__(self, config: ConfigDict, dataset: Dataset, features: Path | None = None):
        """Reads the training and validation images; compiles when it is first used.

        Args:
          config: valid.
          dataset: the data.
          features: where those of a frozen backbone are kept; None: they are computed in every epoch anew.
        """
        self.dataset = dataset
        self._config, self._features = config, features
        self._lanes = lanes.count_of(config)
        keys = [rng.root(seed) for seed in self._seeds]
        self._key = jnp.stack(keys) if self._lanes else keys[0]
        epochs = config.epochs + config.finetune.epochs
        pause = math.gcd(config.checkpoint.epochs, config.eval.epochs if len(dataset.validation) else 0)
        self.schedule = Schedule(len(dataset.train), config.batch_size, epochs, config.steps_per_call, pause)
        self.model = models.build(config.model, len(dataset.class_names), config.dtype)
        self._preprocess = Preprocessing.from_config(config.data, **models.normalisation(config.model))
        self.duplicates: dict[str, list[str]] = {}
        self._seen = Duplicates()
        self._images: dict[str, dict[str, np.ndarray]] = {}
        for split in SPLITS[:2]:
            self._read(split)
        self._arrays: dict[tuple[str, bool], dict[str, jax.Array]] = {}
        stored = self._images["train"]["image"]
        self.image_size = jax.eval_shape(self._preprocess, stored[:1]).shape[1:3]
        self.metadata = {
            "config": config.to_dict(),
            "class_names": list(dataset.class_names),
            "input_size": list(stored.shape[1:3]),
            "preprocessing": dataclasses.asdict(self._preprocess),
            FINGERPRINT: _fingerprint(self._images),
        }
        self.phases = self._make_phases(config)
        views = Views.from_config(config.eval)
        self._evaluate = make_evaluator(self.model, self._preprocess, config.eval_batch_size, self._lanes, views)
        self._summarise = jax.jit(lanes.over_lanes(summarise, (0,), self._lanes))

    def _make_phases(self, config: ConfigDict) -> list[Phase]:
        variables = jax.eval_shape(self._draw, rng.root(0))
        augment = Augmentation.from_config(config.augment, self._preprocess.mean, self.image_size)
        phases, stop, partition = [], 0, None
        for own in config_lib.phases(config):
            start, stop = stop, self.schedule.end_of_epoch(sum(p.config.epochs for p in phases) + own.epochs)
            partition = Partition.of(variables, own.model.trainable, own.optimizer.groups, partition)
            phases.append(Phase(own, self.model, self._preprocess, augment, partition, start, stop, self.schedule))
        if self._lanes and self._features and phases[0].keeps_features and config.model.get("weights") == RANDOM:
            raise UserError(
                "Every seed has a random backbone of its own, so that there are no features to share: set "
                "--config.features.cache=False, or --config.seeds=1."
            )
        return phases

    @property
    def _seeds(self) -> range:
        return range(self._config.seed, self._config.seed + self._config.seeds)

    @property
    def layout(self) -> dict[str, str | None]:
        """How steps and seeds are dispatched on this kind of device; "seeds" is None for a single one."""
        steps = "scan" if dispatch.scans_well() else "loop"
        return {"steps": steps, "seeds": lanes.choose(self._lanes) if self._lanes else None}

    def phase(self, now: int) -> Phase:
        """The phase of the step that starts at `now`; the last one at the end."""
        return next((phase for phase in self.phases if now < phase.stop), self.phases[-1])

    def init_state(self) -> step.TrainState:
        """Returns the state at step 0; with a leading lane axis where there are several seeds.

        Raises:
          UserError: the weights of a backbone cannot be had.
        """
        draw, begin = self._make_draw(), jax.jit(self.phases[0].begin_run)
        states = [begin(self._fit(draw(rng.root(seed)))) for seed in self._seeds]
        return lanes.stack(states) if self._lanes else states[0]

    def _draw(self, key: jax.Array) -> PyTree:
        return step.draw(self.model, key, jnp.zeros((1, *self.image_size, 3)))

    def _make_draw(self) -> Callable[[jax.Array], PyTree]:
        """Returns the function from a run's key to the variables that it begins with."""
        source = self._config.model.get("weights", RANDOM)
        if source == RANDOM:
            return jax.jit(self._draw)
        shapes = jax.eval_shape(self._draw, rng.root(0))
        of_backbone = {kind: tree["backbone"] for kind, tree in shapes.items()}
        loaded = jax.device_put(pretrained.load(self._config.model.name, source, of_backbone))
        # Initialised on features: the backbone, which is loaded, is then neither compiled nor drawn at random.
        features = jnp.zeros((1, self.model.network.num_features))
        draw_head = jax.jit(lambda key: step.draw(self.model, key, features, "classify"))

        def draw(key):
            head = draw_head(key)
            return {kind: {"backbone": tree, **head.get(kind, {})} for kind, tree in loaded.items()}

        return draw

    def _fit(self, variables: PyTree) -> PyTree:
        """Completes the variables where the network's initialisation looks at the training images."""
        if not isinstance(self.model, InitialisedFromImages):
            return variables
        fit = jax.jit(lambda params, images: self.model.init_from_images(params, self._preprocess(images)))
        images = self._images["train"]["image"][: self.model.init_images]
        return {**variables, "params": fit(variables["params"], images)}

    def like(self, now: int) -> step.TrainState:
        """Returns the shapes, types and devices of what is saved at step `now`."""
        phase = self.phase(max(now - 1, 0))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def init(key):
            return phase.begin_run(self._draw(key))

        shapes = jax.eval_shape(lanes.over_lanes(init, (0,), self._lanes), self._key)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    def must_prepare(self, now: int) -> bool:
        """Whether `prepare` has something to do that may take long: features of a frozen backbone."""
        return self._as_features(now) and not all((split, True) in self._arrays for split in SPLITS[:2])

    def _as_features(self, now: int) -> bool:
        return self._features is not None and self.phase(now).keeps_features

    def prepare(
        self,
        variables: PyTree,
        now: int,
        stop: Callable[[], bool] = lambda: False,
        splits: Sequence[str] = SPLITS[:2],
    ) -> None:
        """Puts on the device what the phase at step `now` needs; features of a frozen backbone are computed once.

        Raises:
          cnn_jax.training.feature_cache.Stopped: `stop` said so; what there is of the features is kept.
        """
        jax.block_until_ready([self._inputs(variables, split, now, stop) for split in splits])

    def update(self, state: step.TrainState, now: int) -> tuple[int, step.TrainState, dict[str, Any]]:
        """Trains from step `now` to the end of the chunk; returns that step, the state there and the chunk's metrics.

        The buffers of `state` are reused: it must not be touched afterwards.
        """
        phase = self.phase(now)
        stop = min(self.schedule.next_stop(now), phase.stop)
        if now and now == phase.start:
            begin = jax.jit(lanes.over_lanes(phase.begin, (0,), self._lanes))
            state = state.replace(opt_state=begin(state.params))
        rows = [self.schedule.rows(seed, now, stop) for seed in self._seeds]
        rows = lanes.stack_rows(rows) if self._lanes else rows[0]
        arrays = self._inputs(state.variables, "train", now)
        state, metrics = phase.train(state, rows, arrays, self._key)
        values = self._fetch(metrics)
        return stop, state, values | {"learning_rate": phase.learning_rate(stop - 1)}

    def evaluate(self, variables: PyTree, split: str, now: int = 0) -> dict[str, Any]:
        """Scores the network on "train", "validation" or "test", every image once; empty where there are none.

        Args:
          variables: {params, batch_stats}.
          split: which images.
          now: the step that `variables` are of: where its phase freezes the backbone, features are reused.
        """
        arrays = self._inputs(variables, split, max(now - 1, 0))
        return self._fetch(self._evaluate(variables, arrays)) if len(arrays["label"]) else {}

    def _inputs(
        self, variables: PyTree, split: str, now: int, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, jax.Array]:
        """A split on the device: as images, or as features where the phase at step `now` changes none of them."""
        as_features = self._as_features(now)
        if (split, as_features) not in self._arrays:
            arrays = self._read(split)
            if as_features:
                batch = self._config.eval_batch_size
                one = self.lane(variables)  # all have the same backbone
                cache = FeatureCache(self._features, self.model, one, self._preprocess, batch)
                arrays = {"features": cache.get(arrays["image"], split, stop), "label": arrays["label"]}
            self._arrays[split, as_features] = jax.device_put(arrays)
        return self._arrays[split, as_features]

    def _read(self, name: str) -> dict[str, np.ndarray]:
        """Returns the images and labels of a split, which are decoded when they are first asked for."""
        if name not in self._images:
            split: Split = getattr(self.dataset, name)
            images = split.images()
            self.duplicates[name] = self._seen.add(name, split, images)
            self._images[name] = {"image": images, "label": split.labels}
        return self._images[name]

    def lane(self, tree: PyTree, index: int = 0) -> PyTree:
        """Returns the part of a state, or of variables, that belongs to one seed."""
        return lanes.take(tree, index) if self._lanes else tree

    def _fetch(self, metrics: Any) -> dict[str, Any]:
        """Returns the values of metrics; waits for them."""
        values = jax.device_get(self._summarise(metrics))
        values = {name: values[name] for name in (*NAMES, *sorted(values.keys() - NAMES))}
        return lanes.spread(values) if self._lanes else {name: float(value) for name, value in values.items()}


def _fingerprint(arrays: dict[str, dict[str, np.ndarray]]) -> str:
    """A hash of the pixels and labels that a run learns and chooses from."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
