"""Batches of a fixed size from any number of examples, so that a function is compiled for one shape."""

import numpy as np
from jaxtyping import Shaped


def pad(array: Shaped[np.ndarray, "n ..."], size: int) -> Shaped[np.ndarray, "size ..."]:
    """Returns `array` with rows of zeros appended, `size` rows in total.

    Args:
      array: at most `size` rows.
      size: the number of rows to return.
    """
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def padded_batches(num_examples: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns index batches that cover all examples once, in order.

    Returns:
      `index` int32 and `mask` bool, both `[batches, batch_size]`. The last batch is padded with example 0, where the
      mask is False.
    """
    batches = -(-num_examples // batch_size)
    index = np.arange(batches * batch_size, dtype=np.int32).reshape(batches, batch_size)
    mask = index < num_examples
    return {"index": np.where(mask, index, 0), "mask": mask}
