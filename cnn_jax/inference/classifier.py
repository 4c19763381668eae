"""A trained network with all that it needs to classify images."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cnn_jax.data import batching
from cnn_jax.data import images as image_files
from cnn_jax.errors import UserError
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import ITSELF, Views
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER

# Compiling takes seconds, so a few sizes are compiled and batches are filled up to the next.
BATCH_SIZES = (1, 16, 128)
FITS = ("crop", "stretch", "pad")

Photograph = Any  # a path, a PIL image, or uint8 [height, width, 3]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network with all that it needs to answer.

    Attributes:
      class_names: one a column of the probabilities.
      input_size: height and width of the images that `log_probabilities` takes.
      preprocessing: what it does to them; the very function that training used.
      log_probabilities: uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`; compiled for each batch size.
      source: where it came from, for people.
      step: the training step of its parameters.
      metadata: JSON: the configuration and the rest of what the run recorded.
      model: the network and its variables, where it was restored from a workdir; None where it was exported.
    """

    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    preprocessing: Preprocessing
    log_probabilities: Callable[[Any], Any]
    source: str
    step: int
    metadata: dict[str, Any]
    model: tuple[Any, Any] | None = None

    def __call__(
        self, images: Sequence[Photograph] | np.ndarray, *, fit: str = "crop", mirror: bool = False
    ) -> Float[np.ndarray, "n classes"]:
        """Returns the probabilities of the classes.

        Args:
          images: uint8 `[n, height, width, 3]`, or a sequence of paths, PIL images and uint8 arrays
            `[height, width, 3]`, of any size.
          fit: how an image of another shape becomes the network's: "crop", "stretch" or "pad" (see
            `cnn_jax.data.images.fit`).
          mirror: average the probabilities over the image and its mirror image.

        Raises:
          UserError: an image cannot be read; it names the file.
        """
        pixels = self.fit(images, fit)
        probabilities = np.exp(self.score(pixels))
        if mirror:
            probabilities = (probabilities + np.exp(self.score(pixels[:, :, ::-1]))) / 2
        return probabilities

    def fit(self, images: Sequence[Photograph] | np.ndarray, how: str = "crop") -> UInt8[np.ndarray, "n h w 3"]:
        """Returns the images at `input_size`: what `score` takes."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            _check_pixels(images)
            if images.shape[1:3] == self.input_size:
                return images
        if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) != 4:
            raise UserError(
                "The images must be a list, or an array [n, height, width, 3]: put a single one into [...]."
            )
        fitted = [_read(image, self.input_size, how) for image in images]
        return np.stack(fitted) if fitted else np.zeros((0, *self.input_size, 3), np.uint8)

    def score(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n classes"]:
        """Returns logarithms of probabilities; images go to the device in batches of a few fixed sizes."""
        results = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(pixels), BATCH_SIZES[-1]):
            part = pixels[start : start + BATCH_SIZES[-1]]
            size = next(size for size in BATCH_SIZES if size >= len(part))
            results.append(np.asarray(self.log_probabilities(batching.pad(part, size)))[: len(part)])
        return np.concatenate(results)


def load_classifier(source: str | os.PathLike, *, step: int | str = "best", lane: int = 0) -> Classifier:
    """Loads a classifier; no optimizer, no data set and no training code is touched.

    Args:
      source: a workdir, or a file that `python -m cnn_jax.export` wrote.
      step: which checkpoint of a workdir: a number, "latest", or "best" by validation accuracy.
      lane: which network of a run with several seeds; 0 is that of `config.seed`.

    Raises:
      UserError: nothing is there, it is damaged, or it has fewer seeds.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_workdir(path, step, lane)
    if path.exists():
        return _from_exported(path)
    raise UserError(f"There is no workdir {path}: train one with python -m cnn_jax.main --workdir={path} ...")


def _from_workdir(path: Path, step: int | str, lane: int) -> Classifier:
    # Here, because an exported file is answered without Orbax and Flax, which take most of a second to import.
    from cnn_jax import models
    from cnn_jax.workdir.checkpoint import restore_model

    number, variables, metadata = restore_model(path / CHECKPOINT_FOLDER, step)
    config, preprocessing = metadata["config"], Preprocessing.from_metadata(metadata["preprocessing"])
    seeds = config.get("seeds", 1)
    if lane >= seeds:
        raise UserError(f"{path} has {seeds} seed{'s' * (seeds > 1)}: --lane={lane} must be below that.")
    if seeds > 1:
        variables = jax.tree.map(lambda x: x[lane], variables)
        # From here on it is the network that a run with this seed alone would have left.
        metadata |= {"config": config | {"seed": config["seed"] + lane, "seeds": 1}}
    model = models.build(config["model"], len(metadata["class_names"]), config["dtype"])
    return Classifier(
        **_described(path, metadata),
        log_probabilities=jax.jit(
            make_scorer(model, variables, preprocessing, Views.from_config(config.get("eval", {})))
        ),
        source=str(path),
        step=number,
        model=(model, variables),
    )


def _from_exported(path: Path) -> Classifier:
    from cnn_jax.inference import artifact

    header, log_probabilities = artifact.read(path)
    return Classifier(
        **_described(path, header), log_probabilities=log_probabilities, source=str(path), step=header["step"]
    )


def _described(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        return {
            "class_names": tuple(metadata["class_names"]),
            "input_size": tuple(metadata["input_size"]),
            "preprocessing": Preprocessing.from_metadata(metadata["preprocessing"]),
            "metadata": metadata,
        }
    except KeyError as error:
        raise UserError(f"{path} does not say its {error}: an older cnn_jax made it. Train it anew.") from None


def make_scorer(
    model: Any, variables: Any, preprocessing: Preprocessing, views: Views = ITSELF
) -> Callable[[Any], Any]:
    """Returns the function from stored images, uint8, to logarithms of probabilities."""

    def predict(inputs):
        return model.apply(variables, inputs, train=False)

    def log_probabilities(images):
        return jax.nn.log_softmax(views(predict, preprocessing(jnp.asarray(images))))

    return log_probabilities


def _read(image: Photograph, size: tuple[int, int], how: str) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(image, np.ndarray):
        _check_pixels(image)
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return np.asarray(image_files.fit(image_files.to_rgb(image), *size, how))
    return image_files.read(image, *size, how)


def _check_pixels(array: np.ndarray) -> None:
    """Refuses what would be answered wrongly in silence: pixels scaled to [0, 1], channels that are not RGB."""
    if array.dtype != np.uint8 or array.shape[-1] != 3 or array.ndim not in (3, 4) or not all(array.shape[-3:]):
        raise UserError(
            f"An array of images is uint8 [height, width, 3], RGB from 0 to 255; this one is {array.dtype} "
            f"{list(array.shape)}."
        )
