"""Detection of images that occur more than once: test images that were trained on make a score too high."""

import hashlib
from collections import defaultdict
from collections.abc import Collection

import numpy as np
from jaxtyping import UInt8

from cnn_jax.data.splits import Split
from cnn_jax.utils import text

_KIND = {"train": "training", "validation": "validation", "test": "test"}


class Duplicates:
    """Finds images that are equal, pixel by pixel, to an image of the same or of an earlier split."""

    def __init__(self):
        """Starts without splits."""
        self._splits: dict[str, Split] = {}
        self._first: dict[bytes, tuple[str, int]] = {}  # digest -> split and position of the first occurrence

    def add(
        self, name: str, split: Split, images: UInt8[np.ndarray, "n height width 3"], skipped: Collection[int] = ()
    ) -> list[str]:
        """Adds a split and returns a description of its duplicates: one line per split that holds the other image.

        60,000 images of 32x32 pixels take a quarter of a second.

        Args:
          name: "train", "validation" or "test"; each at most once.
          split: the split.
          images: all its images, decoded.
          skipped: positions of images that cannot be read, for which others stand.
        """
        self._splits[name] = split
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for position, image in enumerate(np.ascontiguousarray(images)):
            if position in skipped:
                continue
            digest = hashlib.blake2b(image, digest_size=16).digest()
            if digest in self._first:
                earlier, first = self._first[digest]
                found[earlier].append((position, first))
            else:
                self._first[digest] = name, position
        return [self._describe(name, earlier, pairs) for earlier, pairs in found.items()]

    def _describe(self, name: str, earlier: str, pairs: list[tuple[int, int]]) -> str:
        count, (position, first) = len(pairs), pairs[0]
        line = f"{text.count(count, f'{_KIND[name]} image')} "
        if earlier == name:
            line += "repeat an earlier one" if count > 1 else "repeats an earlier one"
        else:
            line += f"{'are' if count > 1 else 'is'} also among the {_KIND[earlier]} images"
        line += f" (first: {self._splits[name].name(position)} = {self._splits[earlier].name(first)})"
        if earlier == "train" != name:
            points = 100 * count / len(self._splits[name])
            line += f"; {name} accuracy may be too high by up to {points:.3g} points"
        return f"{line}."
