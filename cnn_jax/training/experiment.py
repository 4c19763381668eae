"""A run put together: data, network, plan and phases, from a configuration."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import models, rng
from cnn_jax.data.order import Order
from cnn_jax.data.pipeline import Examples, Pipeline, Splits
from cnn_jax.data.splits import Dataset, balanced_weights
from cnn_jax.errors import UserError
from cnn_jax.models.protocols import InitialisedFromImages, TransferNetwork
from cnn_jax.parallel.placement import Placement
from cnn_jax.training import early_stopping
from cnn_jax.training.feature_cache import FeatureCache
from cnn_jax.training.init import RANDOM, Initializer
from cnn_jax.training.init_from import SourceRun
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.metrics import Fetch
from cnn_jax.training.phases import Phase, make_phases
from cnn_jax.training.plan import Plan
from cnn_jax.training.state import TrainState
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.workdir.checkpoint import FINGERPRINT, Checkpoints
from cnn_jax.workdir.layout import FEATURES_FOLDER


class Experiment:
    """A configuration and a data set, ready to train.

    Attributes:
      config: of the run.
      place: how seeds, batches and steps are laid out on the devices.
      splits: the data.
      model: the network.
      preprocess: what is done to every image.
      image_size: height and width of what the network sees.
      initializer: makes the variables that a run starts from.
      plan: maps steps to epochs and chunks.
      phases: training and, where the configuration asks for it, fine-tuning.
      fetch: from metrics on the device to numbers.
      metadata: what inference must know of the run; JSON.
      origin: what `init` started from, if another run (see `cnn_jax.training.init_from.SourceRun.record`).
    """

    def __init__(
        self, config: ConfigDict, dataset: Dataset, features: Path | None = None, place: Placement | None = None
    ):
        """Reads the training and validation images, unless they are streamed; compiles when it is first used.

        Args:
          config: valid (see `cnn_jax.config.validate`).
          dataset: the data.
          features: where features of a frozen backbone are cached; None to compute them in every epoch.
          place: None for that of `config.mesh`.
        """
        self.config = config
        self.place = place or Placement.from_config(config)
        early_stopping.check(config, len(dataset.validation))
        self.splits = Splits(
            dataset,
            self.place,
            stream=config.data.stream,
            memory=config.data.memory,
            skip=config.data.on_bad_image == "skip",
        )
        self.model = models.build(config.model, len(dataset.class_names), config.dtype)
        self.preprocess = Preprocessing.from_config(config.data, **models.normalisation(config.model))
        stored = self.splits.first(1)
        self.image_size = jax.eval_shape(self.preprocess, stored).shape[1:3]
        self.plan = Plan(
            len(dataset.train),
            config.batch_size,
            config.epochs + config.finetune.epochs,
            config.steps_per_call,
            math.gcd(config.checkpoint.epochs, config.eval.epochs if len(dataset.validation) else 0),
            even=self.place.scan,
        )
        self.initializer = Initializer(
            self.model, self.preprocess, self.image_size, config.model.name, config.model.get("weights", RANDOM)
        )
        self._features = features
        self.phases = make_phases(
            config,
            self.model,
            jax.eval_shape(self.initializer.random, rng.root(0)),
            ImageInputs.from_config(config, self.preprocess, self.image_size),
            self.plan,
            self.place,
            reuse_features=features is not None,
            class_weights=balanced_weights(dataset.train.labels, dataset.class_names)
            if config.data.class_weights == "balanced"
            else None,
        )
        for side in config.augment.sides:
            self._check_side(side)
        if config.seeds > 1 and self.phases[0].on_features and self.initializer.weights == RANDOM:
            raise UserError(
                "Every seed has a random backbone of its own, so that there are no features to share: set "
                "--config.features.cache=False, or --config.seeds=1."
            )
        self._begin = jax.jit(self.phases[0].step.init)
        self.origin: dict[str, Any] | None = None
        self.fetch = Fetch(self.place)
        self.metadata = {
            "config": config.to_dict(),
            "class_names": list(dataset.class_names),
            "input_size": list(stored.shape[1:3]),
            "preprocessing": dataclasses.asdict(self.preprocess),
            FINGERPRINT: self.splits.fingerprint,
        }

    @functools.cached_property
    def keys(self) -> PyTree:
        """The root key, with a leading axis where there are several seeds."""
        return self.place.stack([rng.root(seed) for seed in self.seeds])

    @property
    def seeds(self) -> range:
        """The seeds that are trained at once."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    def with_seed(self, seed: int) -> "Experiment":
        """Returns the same experiment with another first seed; it shares the data and what has been compiled."""
        other = copy.copy(self)
        other.config = self.config.copy_and_resolve_references()
        other.config.seed = seed
        other.keys = other.place.stack([rng.root(each) for each in other.seeds])
        other.metadata = self.metadata | {"config": other.config.to_dict()}
        return other

    def phase(self, step: int) -> Phase:
        """Returns the phase of the step that starts at `step`; the last one at the end."""
        return next((phase for phase in self.phases if step < phase.stop), self.phases[-1])

    def phases_from(self, step: int) -> Iterator[Phase]:
        """Yields the phases that still have steps to train."""
        return (phase for phase in self.phases if step < phase.stop)

    def init(self) -> TrainState:
        """Returns the state at step 0: from another run or pretrained weights, as the configuration says, else random.

        Raises:
          UserError: the other run or the weights of a backbone cannot be had.
        """
        count = self.model.init_images if isinstance(self.model, InitialisedFromImages) else 0
        variables = self.initializer(self.seeds, self.splits.first(count))
        if self.config.init_from:
            source = SourceRun.read(self.config.init_from)
            fresh = source.fresh(variables[0], self._variables_of_classes(source))
            variables = [source.put_into(each, fresh) for each in variables]
            self.origin = source.record(fresh, self.metadata)
        return jax.block_until_ready(self.place.stack([self._begin(each) for each in variables]))

    def target(self, step: int) -> TrainState:
        """Returns shapes, types and shardings of the state that is saved at `step`."""
        phase = self.phase(max(step - 1, 0))
        return self.place.abstract(lambda key: phase.step.init(self.initializer.random(key)), rng.root(0))

    def restore(self, checkpoints: Checkpoints) -> tuple[int, TrainState] | None:
        """Returns the latest intact step of the run and its state; None where nothing was saved."""
        restored = checkpoints.restore(lambda step: self.target(step).items)
        if restored is None:
            return None
        step, items = restored
        return step, self.target(step).with_items(items)

    def must_compute_features(self, phase: Phase, *splits: str) -> bool:
        """Whether `examples` may take long: features of a frozen backbone that are not on the device yet."""
        return phase.on_features and not self.splits.has_features(*splits)

    def examples(
        self, phase: Phase, variables: PyTree, split: str, stop: Callable[[], bool] = lambda: False
    ) -> Examples:
        """Returns the examples of a split: images, or in a phase on features what the frozen backbone computes.

        Args:
          phase: which trains on the split, or whose network is scored on it.
          variables: {params, batch_stats}; all seeds have the same backbone.
          split: "train", "validation" or "test".
          stop: asked between batches of features.

        Raises:
          cnn_jax.training.feature_cache.Stopped: `stop` said so; the features so far are on disk.
        """
        if not phase.on_features:
            return self.splits.examples(split)
        return self.splits.features(split, self._feature_cache(self.place.seed(variables), stop))

    def pipeline(self, phase: Phase, variables: PyTree, stop: Callable[[], bool] = lambda: False) -> Pipeline:
        """Returns what feeds the steps of a phase; see `examples`."""
        order = Order(self.plan.num_examples, self.plan.batch_size)
        return Pipeline(self.examples(phase, variables, "train", stop), order, self.seeds)

    def warm_up(self, phase: Phase, state: TrainState, pipeline: Pipeline, step: int) -> None:
        """Compiles and runs the program of a chunk, on a copy of the state that is thrown away.

        On a GPU the first run of a program also loads it and sets up cuDNN. It is padded to the length of the others,
        so that one program serves all; on a CPU it is one step.
        """
        copy = jax.tree.map(jnp.copy, state)
        rows = pipeline.rows(step, step + 1)
        _, metrics = phase.train(copy, rows, pipeline.shared, self.keys, phase.longest_chunk)
        self.fetch(metrics)

    def train_chunk(self, state: TrainState, step: int) -> tuple[int, TrainState, dict[str, Any]]:
        """Trains the chunk that starts at `step` and waits for its metrics: the loop for scripts and tests.

        Returns:
          The step at which the chunk ends, the state there, whose buffers are those of `state`, and the metrics.
        """
        phase = self.phase(step)
        if step == phase.start and step:
            state = phase.restart(state)
        chunk, pipeline = next(self.plan.chunks(step, phase.stop)), self.pipeline(phase, state.variables)
        rows = pipeline.rows(*chunk)
        state, metrics = phase.train(state, rows, pipeline.shared, self.keys, phase.longest_chunk)
        return chunk.stop, state, self.fetch(metrics)

    def evaluate(self, variables: PyTree, split: str, step: int = 0) -> dict[str, Any]:
        """Scores the network on "train", "validation" or "test", every image once; empty where there are none.

        Images that cannot be read are not scored; their number is added as "unreadable".

        Args:
          variables: {params, batch_stats}.
          split: which images.
          step: of `variables`: where its phase freezes the backbone, features are reused.
        """
        phase = self.phase(max(step - 1, 0))
        examples = self.examples(phase, variables, split)
        if not len(examples):
            return {}
        return self.fetch(phase.evaluate(variables, examples)) | self.splits.count_unreadable(split)

    def _check_side(self, side: int) -> None:
        """Raises a `UserError` where the network cannot be trained on images of `side` x `side` pixels."""
        resized = dataclasses.replace(self.initializer, image_size=(side, side))
        ours, others = (jax.eval_shape(each.random, rng.root(0)) for each in (self.initializer, resized))
        if not all(jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape, ours, others))):
            raise UserError(
                f"config.augment.sides is {tuple(self.config.augment.sides)}, but the size of the images decides the "
                f"shapes of the parameters of the network {self.config.model.name}: leave it empty, or take a network "
                "that ends in a mean or maximum over the image, such as speednet or resnet18."
            )

    def _variables_of_classes(self, source: SourceRun) -> set[tuple[str, ...]]:
        """Returns the paths of the variables that belong to classes, if the classes of `source` are not these."""
        if source.metadata["class_names"] == self.metadata["class_names"]:
            return set()
        larger = models.build(self.config.model, self.model.num_classes + 1, self.config.dtype)
        initializers = self.initializer, dataclasses.replace(self.initializer, model=larger)
        ours, others = (jax.eval_shape(each.random, rng.root(0)) for each in initializers)
        differ = jax.tree.map(lambda a, b: a.shape != b.shape, ours, others)
        return {path for path, differs in flax.traverse_util.flatten_dict(differ).items() if differs}

    def _feature_cache(self, variables: PyTree, stop: Callable[[], bool]) -> Callable[..., Any]:
        folder, model = self._features, self.model
        assert folder and isinstance(model, TransferNetwork)

        def compute(images, split):
            cache = FeatureCache(folder, model, variables, self.preprocess, self.config.eval_batch_size)
            return cache.get(images, split, stop)

        return compute


def features_folder(config: ConfigDict, workdir: Path) -> Path | None:
    """Returns where features of a frozen backbone are cached, or None."""
    if not config.features.cache:
        return None
    return Path(config.features.dir).expanduser() if config.features.dir else workdir / FEATURES_FOLDER
