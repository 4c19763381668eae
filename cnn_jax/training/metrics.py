"""Classification metrics as sums and counts: they add up over batches, chunks and devices, whatever the sizes.

A metric is a `clu.metrics.Metric`, a flax dataclass whose fields are arrays, with three methods:

- `from_model_output(*, logits, labels, loss, mask, **_)`, a class method, returns the metric of a batch: logits
  `[batch, classes]`, and labels, loss and mask `[batch]`. Where the mask is False, an example is padding and must not
  count.
- `merge(other)` returns the metric of both batches: the sum, field by field. Metrics start from zeros and are summed
  over devices in the same way, so that every field must be a sum or a count. That is the case for `Average`, `Accuracy`
  and `Std` of clu, but not for `LastValue` and `CollectingMetric`.
- `compute()` returns a scalar, which is recorded under the name of the metric in `Classification`, or a dictionary of
  scalars by name.

`clu.metrics.Average.from_fun(f)` makes a metric of a function `f(*, logits, labels, loss, **_)` with one value per
example.
"""

from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Bool, Float, Int

from cnn_jax.parallel.placement import Placement

# No `from __future__ import annotations` here: clu reads the annotations of a Collection as classes.


# The names that every record of a run has, in the order of printing; those of other metrics follow.
NAMES = ("loss", "accuracy", "precision", "recall", "f1", "threshold_precision", "threshold_recall")


def _ratio(part: Float[Array, "..."], whole: Float[Array, "..."]) -> Float[Array, "..."]:
    """`part / whole`, and 0 where `whole` is 0, as scikit-learn's `zero_division=0`."""
    return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 0.0)


@flax.struct.dataclass
class _Counts(clu_metrics.Metric):
    """Counts of true positives, predicted positives and actual positives."""

    true_positive: Any  # float32 counts
    predicted: Any
    actual: Any

    axis: ClassVar[int | None] = None  # over which examples are counted: 0 per class, None for all classes at once

    @classmethod
    def from_model_output(
        cls,
        *,
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"],
        **_,
    ):
        weight = mask.astype(jnp.float32)[:, None]
        actual = jax.nn.one_hot(labels, logits.shape[-1]) * weight
        predicted = cls.predict(logits) * weight
        return cls((actual * predicted).sum(cls.axis), predicted.sum(cls.axis), actual.sum(cls.axis))

    @staticmethod
    def predict(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        """Returns 1 for the classes that are predicted, 0 for the others."""
        raise NotImplementedError

    def merge(self, other):
        return jax.tree.map(jnp.add, self, other)

    @property
    def precision(self) -> jax.Array:
        return _ratio(self.true_positive, self.predicted)

    @property
    def recall(self) -> jax.Array:
        return _ratio(self.true_positive, self.actual)


@flax.struct.dataclass
class MacroScores(_Counts):
    """Precision, recall and F1 of every class, averaged over the classes that occur or are predicted.

    The class with the highest logit is the prediction. Equals scikit-learn's `average="macro", zero_division=0`.
    """

    axis: ClassVar[int | None] = 0

    @staticmethod
    def predict(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])

    def compute(self) -> dict[str, jax.Array]:
        f1 = _ratio(2 * self.true_positive, self.predicted + self.actual)
        seen = (self.predicted + self.actual > 0).astype(jnp.float32)
        scores = {"precision": self.precision, "recall": self.recall, "f1": f1}
        return {name: _ratio((value * seen).sum(), seen.sum()) for name, value in scores.items()}


@flax.struct.dataclass
class ThresholdScores(_Counts):
    """Precision and recall of the claim "this class has a probability above 0.5", over all classes at once.

    The reference reports these (Keras' `Precision()` and `Recall()` on one-hot labels). An image for which no class
    exceeds 0.5 lowers only the recall.
    """

    @staticmethod
    def predict(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return (jax.nn.softmax(logits) > 0.5).astype(jnp.float32)

    def compute(self) -> dict[str, jax.Array]:
        return {"threshold_precision": self.precision, "threshold_recall": self.recall}


@flax.struct.dataclass
class Classification(clu_metrics.Collection):
    """Classification metrics that every record has, by name."""

    loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm]
    accuracy: clu_metrics.Accuracy
    macro: MacroScores
    threshold: ThresholdScores


@flax.struct.dataclass
class Diagnostics(clu_metrics.Metric):
    """Averages over steps of named scalars; there may be none."""

    totals: dict[str, Any]  # float32 sums
    steps: Any  # float32 []

    @classmethod
    def from_model_output(cls, *, diagnostics: dict[str, jax.Array], **_):
        return cls(diagnostics, jnp.ones(()))

    def merge(self, other):
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, jax.Array]:
        return {name: total / self.steps for name, total in self.totals.items()}


# The metrics of a train step. Created rather than subclassed, because clu does not see inherited fields.
TrainMetrics = clu_metrics.Collection.create(**Classification.__annotations__, diagnostics=Diagnostics)


def summarise(collection: clu_metrics.Collection) -> dict[str, jax.Array]:
    """Computes a collection into one flat dictionary of scalars."""
    with jax.numpy_dtype_promotion("standard"):  # clu divides sums by integer counts
        computed = collection.compute()
    values = {}
    for name, value in computed.items():
        values.update(value if isinstance(value, dict) else {name: value})
    return values


class Fetch:
    """From metrics on the device to numbers on the host, in two parts, between which the device can compute.

    Attributes:
      program: computes scores, by `jax.jit`.
    """

    def __init__(self, place: Placement):
        """Compiles when it is first called."""
        self._several = place.seeds is not None
        self.program = place.jit_per_seed(summarise)

    def start(self, metrics: clu_metrics.Collection) -> dict[str, jax.Array]:
        """Returns the values on the device, one per seed where there are several; does not wait."""
        return self.program(metrics)

    def finish(self, values: dict[str, jax.Array]) -> dict[str, Any]:
        """Returns the values as numbers; waits for them.

        Of several seeds: the means, the standard deviations (n - 1) as NAME_std, and the numbers of all seeds as
        "lanes".
        """
        values = jax.device_get(values)
        values = {name: values[name] for name in (*NAMES, *sorted(values.keys() - set(NAMES)))}
        if not self._several:
            return {name: float(value) for name, value in values.items()}
        result = {name: float(np.mean(value)) for name, value in values.items()}
        result |= {f"{name}_std": float(np.std(value, ddof=1)) for name, value in values.items()}
        return result | {"lanes": {name: [float(x) for x in value] for name, value in values.items()}}

    def __call__(self, metrics: clu_metrics.Collection) -> dict[str, Any]:
        """Returns the values as numbers; waits for them."""
        return self.finish(self.start(metrics))
