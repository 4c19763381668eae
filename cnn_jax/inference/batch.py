"""Answers for any number of images, in their order, in bounded memory: decoding runs ahead, beside computing."""

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
_AHEAD = 2 * BATCH_SIZES[-1]  # images decoded or being decoded: one batch computes while the next one fills


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of one image.

    Attributes:
      name: as it was given, or the path within a folder that was given.
      probabilities: one a class; None where the image cannot be read.
      error: why not, in one line that starts with the name; empty where it could be read.
    """

    name: str
    probabilities: Float[np.ndarray, " classes"] | None
    error: str = ""


def stream(
    classifier: Classifier, names: Iterable[str], *, fit: str = "crop", mirror: bool = False
) -> Iterator[Answer]:
    """Answers images one after the other; what cannot be read is an answer too.

    Args:
      classifier: answers batches.
      names: paths; `-` reads standard input.
      fit: see `cnn_jax.data.images.fit`.
      mirror: average over the image and its mirror image.

    Raises:
      UserError: the network answers what is not a number.
    """

    def read(name: str, source: str | bytes) -> UInt8[np.ndarray, "h w 3"]:
        return images.read(
            source, *classifier.input_size, fit, "standard input" if name == images.STANDARD_INPUT else name
        )

    batch: list[tuple[str, np.ndarray | str]] = []
    for name, decoded in _ahead(read, names):
        try:
            batch.append((name, decoded.result()))
        except UserError as error:
            batch.append((name, str(error)))
        if len(batch) == BATCH_SIZES[-1]:
            yield from _answer(classifier, batch, mirror)
            batch = []
    yield from _answer(classifier, batch, mirror)


def _ahead(read: Callable[[str, str | bytes], np.ndarray], names: Iterable[str]) -> Iterator[tuple[str, Future]]:
    """Yields each name and the future of its pixels, in order, while `_AHEAD` of them are under way."""
    pool = ThreadPoolExecutor(_THREADS)
    waiting: deque[tuple[str, Future]] = deque()
    try:
        for name in names:
            # Not in the pool: no thread can be interrupted that waits for what somebody types.
            source = _standard_input() if name == images.STANDARD_INPUT else name
            waiting.append((name, pool.submit(read, name, source)))
            if len(waiting) == _AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _standard_input() -> bytes:
    return sys.stdin.buffer.read(images.MAX_BYTES + 1) if sys.stdin else b""


def _answer(classifier: Classifier, batch: list[tuple[str, np.ndarray | str]], mirror: bool) -> Iterator[Answer]:
    pixels = [result for _, result in batch if not isinstance(result, str)]
    probabilities = iter(classifier(np.stack(pixels), mirror=mirror) if pixels else ())
    for name, result in batch:
        if isinstance(result, str):
            yield Answer(name, None, result)
            continue
        answer = next(probabilities)
        if not np.isfinite(answer).all():
            raise UserError(
                f"The network of {classifier.source} answers {name} with no numbers: the parameters of step "
                f"{classifier.step} are not finite. Take another --step."
            )
        yield Answer(name, answer)
