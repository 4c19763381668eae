"""The ladder's network in Keras 3, plainly, for scripts/benchmark.py; KERAS_BACKEND chooses what it runs on.

Variants: "fit" and "train_on_batch", Keras' two ways to train; with "-bfloat16", under its mixed policy.
"""

# ruff: noqa: D102, D107 -- what the methods do is said once, in workload.Contender

import keras
import numpy as np
import workload
from keras import layers


def build() -> keras.Model:
    """Returns the network; its layers have our names."""

    def batch_norm(name):
        return layers.BatchNormalization(momentum=workload.BN_MOMENTUM, epsilon=workload.BN_EPSILON, name=f"{name}_bn")

    model = keras.Sequential([keras.Input((workload.SIDE, workload.SIDE, 3))])
    for block, width in enumerate(workload.WIDTHS, 1):
        for name in (f"conv{block}_1", f"conv{block}_2"):
            model.add(layers.Conv2D(width, 3, padding="same", activation="relu", name=name))
            model.add(batch_norm(name))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(workload.HIDDEN, activation="relu", name="dense1"))
    model.add(batch_norm("dense1"))
    model.add(layers.Dense(workload.CLASSES, dtype="float32", name="head"))
    return model


class Keras:
    """See `workload.Contender`."""

    def __init__(self, variant: str, batch: int, steps: int, device: str):
        if "bfloat16" in variant:
            keras.mixed_precision.set_global_policy("mixed_bfloat16")
        self._fits, self._batch, self._device = variant.startswith("fit"), batch, device
        self.model = build()
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(
            keras.optimizers.SGD(workload.LEARNING_RATE, workload.MOMENTUM), self._loss, metrics=["accuracy"]
        )
        images, labels = workload.data(batch * steps)
        self._images, self._labels = images.astype(np.float32) / 255, labels
        self._batches = list(zip(np.split(self._images, steps), np.split(labels, steps)))

    def load(self, weights: dict[str, np.ndarray]) -> None:
        for name, value in weights.items():
            layer, _, leaf = name.rpartition("/")
            attribute = {"scale": "gamma", "bias": "beta"}.get(leaf, leaf) if layer.endswith("_bn") else leaf
            getattr(self.model.get_layer(layer), attribute).assign(value)

    def count(self) -> int:
        return sum(int(np.prod(weight.shape)) for weight in self.model.trainable_weights)

    def losses(self, rows: np.ndarray) -> list[float]:
        found = []
        for row in rows:
            self.model.reset_metrics()  # it returns averages since the last reset
            found.append(float(self.model.train_on_batch(self._images[row], self._labels[row])[0]))
        return found

    def test_loss(self) -> float:
        return float(self._loss(self._labels, self.model(self._images, training=False)))

    def train(self) -> None:
        if self._fits:
            self.model.fit(self._images, self._labels, self._batch, epochs=1, shuffle=False, verbose=0)
        else:
            for images, labels in self._batches:
                self.model.train_on_batch(images, labels)

    def infer(self) -> None:
        for images, _ in self._batches:
            self.model.predict_on_batch(images)

    def versions(self) -> dict[str, str]:
        backend = __import__(keras.backend.backend())
        return {"keras": keras.__version__, backend.__name__: backend.__version__, "on": self._device}

    def device_memory(self) -> int | None:
        return None


if __name__ == "__main__":
    workload.serve(Keras)
