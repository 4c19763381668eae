"""Scoring a network on arrays of images: every image once, whatever the batch size."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from cnn_jax.parallel.lanes import make_lane_chunk, over_lanes
from cnn_jax.training.metrics import Classification, zeros_like
from cnn_jax.training.step import gather, make_eval_step
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import ITSELF, Views


def padded_batches(num_examples: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the rows that cover all examples in order: `index` int32 and `mask` bool, `[batches, batch_size]`.

    The last batch is filled up with example 0, masked out.
    """
    batches = -(-num_examples // batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, batch_size)
    mask = index < num_examples
    return {"index": np.where(mask, index, 0), "mask": mask}


def make_evaluator(
    model: nn.Module, preprocess: Preprocessing, batch_size: int, seeds: int = 0, views: Views = ITSELF
) -> Callable[[PyTree, dict[str, jax.Array]], Classification]:
    """Builds `evaluate(variables, arrays) -> metrics`.

    Args:
      model: the network.
      preprocess: what is done to every image.
      batch_size: images at once. It decides about memory and speed, not about the result.
      seeds: lanes of the variables (see `cnn_jax.parallel.lanes`), and of the metrics; 0 where they have no lane axis.
      views: what of every image the network sees (see `cnn_jax.transforms.tta`).

    Returns:
      A function of the variables {params, batch_stats} and of {"image": uint8 `[n, height, width, 3]`, "label": int32
      `[n]`}.
    """
    eval_step = make_eval_step(model, preprocess=preprocess, views=views)

    def score(row, arrays, variables):
        return eval_step(variables, gather(arrays, row))

    def body(metrics, *arguments):
        return metrics.merge(score(*arguments))

    axes = (0, None, None, 0)
    chunk = make_lane_chunk(body, axes, seeds)
    # Never run: compiled functions remember what they were traced for, so the shapes are found once.
    score_all = jax.jit(over_lanes(score, axes[1:], seeds))

    def evaluate(variables: PyTree, arrays: dict[str, jax.Array]) -> Classification:
        rows = padded_batches(len(arrays["label"]), batch_size)
        first = jax.tree.map(lambda x: x[0], rows)
        return chunk(zeros_like(jax.eval_shape(score_all, first, arrays, variables)), rows, arrays, variables)

    return evaluate
