"""Predictions for any number of image files, in order and in bounded memory; decoding overlaps inference."""

import dataclasses
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt8

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.inference import Classifier
from cnn_jax.inference.classifier import BATCH_SIZES

_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 2 * BATCH_SIZES[-1]  # images decoded or being decoded: one batch is computed while the next is filled


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image, or why there is none.

    Attributes:
      name: the image as it was named.
      probabilities: one per class; None if the image cannot be read.
      error: why it cannot be read, in one line that starts with the name; empty otherwise.
    """

    name: str
    probabilities: Float[np.ndarray, " classes"] | None
    error: str = ""


def predict(
    classifier: Classifier,
    names: Iterable[str],
    *,
    fit: str = "crop",
    mirror: bool = False,
    calibrate: bool = False,
) -> Iterator[Prediction]:
    """Yields one prediction per image, in order. Images that cannot be read are yielded with an error.

    Args:
      classifier: the network.
      names: paths; `-` reads standard input.
      fit: how images are resized (see `cnn_jax.data.images.fit`).
      mirror: average over each image and its mirror image.
      calibrate: apply the classifier's calibration, if there is one.

    Raises:
      UserError: the probabilities are not finite.
    """

    def read(name: str, source: str | bytes) -> UInt8[np.ndarray, "h w 3"]:
        return images.read(
            source, *classifier.input_size, fit, "standard input" if name == images.STANDARD_INPUT else name
        )

    batch: list[tuple[str, np.ndarray | str]] = []
    for name, decoded in _decode_ahead(read, names):
        try:
            batch.append((name, decoded.result()))
        except UserError as error:
            batch.append((name, str(error)))
        if len(batch) == BATCH_SIZES[-1]:
            yield from _classify(classifier, batch, mirror, calibrate)
            batch = []
    yield from _classify(classifier, batch, mirror, calibrate)


def _decode_ahead(read: Callable[[str, str | bytes], np.ndarray], names: Iterable[str]) -> Iterator[tuple[str, Future]]:
    """Yields each name and the future of its pixels, in order, with at most `_AHEAD` of them pending."""
    pool = ThreadPoolExecutor(_THREADS)
    pending: deque[tuple[str, Future]] = deque()
    try:
        for name in names:
            # Standard input is read in this thread: a worker that waits for a user's input cannot be interrupted.
            source = _standard_input() if name == images.STANDARD_INPUT else name
            pending.append((name, pool.submit(read, name, source)))
            if len(pending) == _AHEAD:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _standard_input() -> bytes:
    return sys.stdin.buffer.read(images.MAX_BYTES + 1) if sys.stdin else b""


def _classify(
    classifier: Classifier, batch: list[tuple[str, np.ndarray | str]], mirror: bool, calibrate: bool
) -> Iterator[Prediction]:
    """Yields the predictions of one batch of (name, pixels or error)."""
    pixels = [result for _, result in batch if not isinstance(result, str)]
    probabilities = iter(classifier(np.stack(pixels), mirror=mirror, calibrate=calibrate) if pixels else ())
    for name, result in batch:
        if isinstance(result, str):
            yield Prediction(name, None, result)
            continue
        row = next(probabilities)
        if not np.isfinite(row).all():
            raise UserError(
                f"{classifier.source} predicts NaN for {name}: the parameters of step {classifier.step} are not "
                "finite. Choose another --step."
            )
        yield Prediction(name, row)
