"""Inference with a trained network, from a workdir or a single-file exported model.

from cnn_jax.inference import load_classifier
classifier = load_classifier("runs/batchnorm")     # or a file written by python -m cnn_jax.export
probabilities = classifier(["cat.jpg", "dog.png"])  # [2, classes]
"""

from cnn_jax import runtime

runtime.prepare()  # before JAX is imported; the commands have done it already, other programs have not

from cnn_jax.inference.classifier import Classifier, load_classifier  # noqa: E402

__all__ = ["Classifier", "load_classifier"]
