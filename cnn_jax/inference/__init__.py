"""Predictions of a trained network: a workdir, or a single-file exported model, and any images.

from cnn_jax.inference import load_classifier
classifier = load_classifier("runs/batchnorm")     # or a file that python -m cnn_jax.export wrote
probabilities = classifier(["cat.jpg", "dog.png"])  # [2, classes]
"""

from cnn_jax import runtime

runtime.prepare()  # for programs that are not one of the commands; before JAX is imported

from cnn_jax.inference.classifier import Classifier, load_classifier  # noqa: E402

__all__ = ["Classifier", "load_classifier"]
