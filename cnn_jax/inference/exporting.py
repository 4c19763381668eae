"""Writes a classifier to a file of one of several formats, and compares what the file answers."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.inference import artifact, onnx_writer, weights
from cnn_jax.inference.classifier import Classifier, load_classifier

LARGEST_DIFFERENCE = 1e-4  # between probabilities: above rounding errors, below those of a wrong program

Outputs = Callable[[np.ndarray], np.ndarray]


def write(output: Path, classifier: Classifier, kind: str, card: dict[str, Any]) -> tuple[str, float | None]:
    """Writes a file, and compares its probabilities with those of the classifier on two random images.

    Args:
      output: the file to write or replace.
      classifier: of a workdir.
      kind: a key of `WRITERS`.
      card: see `cnn_jax.evaluation.card.describe`; formats that have a place for it hold it.

    Returns:
      What the file is, in words, and the largest difference; None if the format cannot be run here.

    Raises:
      UserError: the network cannot be written in this format, the file cannot be written, or it differs by more than
        `LARGEST_DIFFERENCE`: it is then removed.
    """
    about, outputs = WRITERS[kind](output, classifier, card)
    if outputs is None:
        return about, None
    images = np.random.default_rng(0).integers(0, 256, (2, *classifier.input_size, 3), np.uint8)
    difference = float(np.abs(outputs(images) - classifier(images)).max())
    if not difference <= LARGEST_DIFFERENCE:
        output.unlink()
        raise UserError(
            f"Exported outputs differ from those of the workdir by up to {difference:.3g}: the file was removed."
        )
    return about, difference


def _write_jaxexport(output: Path, classifier: Classifier, card: dict[str, Any]) -> tuple[str, Outputs | None]:
    header = artifact.write(output, classifier.log_probabilities, _metadata(classifier), classifier.step)
    about = f"jax {header['jax']}, for {' and '.join(header['platforms'])}"
    # Trusted, because it is ours: a network of one's own may use operations that a stranger's file may not.
    return about, lambda images: load_classifier(output, trust=True)(images)


def _write_safetensors(output: Path, classifier: Classifier, card: dict[str, Any]) -> tuple[str, Outputs | None]:
    weights.write(output, classifier.members, _metadata(classifier) | {"step": classifier.step}, card)
    return f"{card['parameters']:,} parameters", lambda images: load_classifier(output)(images)


def _write_onnx(output: Path, classifier: Classifier, card: dict[str, Any]) -> tuple[str, Outputs | None]:
    if classifier.metadata["config"]["dtype"] != "float32":
        raise UserError(
            "ONNX runtimes do not compute this network in bfloat16: choose --format=jaxexport or safetensors."
        )
    metadata = {"class_names": json.dumps(classifier.class_names), "card": json.dumps(card)}
    onnx_writer.write(output, classifier.log_probabilities, classifier.input_size, metadata)
    about = f"ONNX operators {onnx_writer.OPSET}"
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        return about, None
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    return about, lambda images: np.exp(session.run([onnx_writer.OUTPUT], {onnx_writer.INPUT: images})[0])


# By the name of the format.
WRITERS = {"jaxexport": _write_jaxexport, "onnx": _write_onnx, "safetensors": _write_safetensors}


def _metadata(classifier: Classifier) -> dict[str, Any]:
    """Returns what the run recorded, and the calibration if there is one."""
    fitted = classifier.calibration
    return classifier.metadata | ({"calibration": dataclasses.asdict(fitted)} if fitted else {})
