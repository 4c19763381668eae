"""What every contender of scripts/benchmark.py does, and how it is told to: the same images, the same commands.

A contender is a class with the methods of `Contender`, and a file that ends in `serve(THE_CLASS)`. It runs in a process
of its own, takes one JSON object a line on standard input, and answers each with one.
"""

# ruff: noqa: D107 -- what the methods do is said once, in workload.Contender

import argparse
import contextlib
import json
import resource
import sys
import time
from typing import Any, Protocol

import numpy as np

SIDE, CLASSES = 32, 10
# Stage `batchnorm`: without dropout, whose masks no two frameworks draw alike, every loss can be compared.
WIDTHS, HIDDEN = (32, 64, 128), 128
LEARNING_RATE, MOMENTUM = 0.01, 0.9
BN_MOMENTUM, BN_EPSILON = 0.99, 1e-3
VERIFIED_STEPS = 3


class Contender(Protocol):
    """A framework with the network, its weights and the images in its memory."""

    def __init__(self, variant: str, batch: int, steps: int, device: str): ...

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Takes over weights by our names, such as "conv1_1/kernel" (height, width, in, out)."""

    def count(self) -> int:
        """Returns the number of parameters that are trained."""

    def losses(self, rows: np.ndarray) -> list[float]:
        """Trains a step on the images that each row picks, and returns the loss of each before its update."""

    def test_loss(self) -> float:
        """Returns the mean loss of all images, with BatchNorm in inference mode."""

    def train(self) -> None:
        """Trains `steps` steps and returns when they are done; keeps count of loss and accuracy, as anyone would."""

    def infer(self) -> None:
        """Computes the logits of `steps` batches of images and returns when they are done."""

    def versions(self) -> dict[str, str]:
        """Names the framework and what it runs on."""

    def device_memory(self) -> int | None:
        """Returns the most bytes that it held on an accelerator; None on a CPU."""


def data(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random patterns of large squares, uint8 `[examples, 32, 32, 3]`, and labels, int32 `[examples]`.

    Not noise in every pixel: all images of that look alike to a network, and BatchNorm then enlarges the rounding.
    """
    coarse = np.random.RandomState(0).randint(0, 256, (examples, 4, 4, 3)).astype(np.uint8)
    labels = np.random.RandomState(1).randint(0, CLASSES, examples).astype(np.int32)
    return coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2), labels


def serve(kind: type) -> None:
    """Builds the contender that the command line describes and answers until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", default="")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a framework prints is no answer
        contender = kind(arguments.variant, arguments.batch, arguments.steps, arguments.device)
        for line in sys.stdin:
            print(json.dumps(_answer(contender, json.loads(line))), file=answers, flush=True)


def _answer(contender: Contender, command: dict[str, Any]) -> dict[str, Any]:
    match command["do"]:
        case "train" | "infer" as work:
            start = time.perf_counter()
            getattr(contender, work)()
            return {"seconds": time.perf_counter() - start}
        case "verify":
            reference = dict(np.load(command["file"]))
            rows, expected, test_loss = (reference.pop(name) for name in ("rows", "losses", "test_loss"))
            contender.load(reference)
            found = [contender.test_loss(), *contender.losses(rows)]
            difference = np.abs(np.divide(found, [test_loss, *expected]) - 1)
            return {
                "parameters": contender.count(),
                "loss_difference": float(difference[:2].max()),
                "loss_difference_after_updates": float(difference[2:].max()),  # BatchNorm enlarges rounding
            }
        case "reference":
            contender.reference(command["file"])
            return {"parameters": contender.count()}
        case "about":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return {
                "versions": contender.versions(),
                "memory": peak,
                "device_memory": contender.device_memory(),
            }
    raise ValueError(command)
