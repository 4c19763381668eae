"""Image classifier restored from a workdir or an exported file."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image

from cnn_jax.data import batching
from cnn_jax.data import images as image_files
from cnn_jax.errors import UserError
from cnn_jax.inference import calibration, seeds
from cnn_jax.inference.calibration import Calibration
from cnn_jax.inference.seeds import ENSEMBLE, Seed
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import NO_TTA, TTA
from cnn_jax.utils import files
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER, CONFIG_FILE

# Compiling takes seconds, so only these sizes are compiled; a batch is padded to the next larger one.
BATCH_SIZES = (1, 16, 128)

ImageLike = Any  # a path, a PIL image, or uint8 [height, width, 3]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network and everything needed to classify images with it.

    Attributes:
      class_names: one per column of the probabilities.
      input_size: height and width of the images that `log_probabilities` takes.
      preprocessing: the preprocessing of training; part of `log_probabilities`.
      log_probabilities: uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`; compiled per batch size. Of an
        ensemble, the logarithm of the mean of the seeds' probabilities.
      source: the path of the workdir or exported file, for messages.
      step: the training step of the parameters.
      metadata: what the run recorded, as JSON: "config", "class_names", "input_size", "preprocessing", ...
      model: the network and its variables {params, batch_stats}, of an ensemble the list of each seed's variables; None
        for an exported program.
      calibration: fitted by `python -m cnn_jax.evaluate`; None if it has not been fitted for this network.
      notice: why another step than the one asked for was read, or damage to it would not be noticed; normally "".
    """

    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    preprocessing: Preprocessing
    log_probabilities: Callable[[Any], Any]
    source: str
    step: int
    metadata: dict[str, Any]
    model: tuple[Any, Any] | None = None
    calibration: Calibration | None = None
    notice: str = ""

    @property
    def seed(self) -> Seed | None:
        """Which seed of a run with several: its index, or "ensemble"; None for a run with one seed."""
        return self.metadata.get("seed")

    @property
    def members(self) -> list[Any]:
        """The variables of each seed that is used: several for an ensemble, otherwise one."""
        assert self.model
        return self.model[1] if self.seed == ENSEMBLE else [self.model[1]]

    def __call__(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        *,
        fit: str = "crop",
        mirror: bool = False,
        calibrate: bool = False,
    ) -> Float[np.ndarray, "n classes"]:
        """Returns the probabilities of the classes.

        Args:
          images: uint8 `[n, height, width, 3]`, or a sequence of paths, PIL images and uint8 arrays
            `[height, width, 3]`, of any size.
          fit: how images of another size are resized: "crop", "stretch" or "pad" (see `cnn_jax.data.images.fit`).
          mirror: average the probabilities over each image and its mirror image, in addition to the run's own
            test-time augmentation.
          calibrate: apply `calibration`, if there is one.

        Raises:
          UserError: an image cannot be read; the message names the file.
        """
        pixels = self.fit(images, fit)
        views = [pixels, pixels[:, :, ::-1]] if mirror else [pixels]
        scores = [self.score(view) for view in views]
        if calibrate and self.calibration:
            scores = [self.calibration(each).astype(np.float32) for each in scores]
        return sum(map(np.exp, scores[1:]), np.exp(scores[0])) / len(views)

    def fit(self, images: Sequence[ImageLike] | np.ndarray, how: str = "crop") -> UInt8[np.ndarray, "n h w 3"]:
        """Returns the images at `input_size`, as `score` takes them; the arguments are those of `__call__`."""
        if isinstance(images, np.ndarray) and images.ndim == 4:
            _check_pixels(images)
            if images.shape[1:3] == self.input_size:
                return images
        if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) != 4:
            raise UserError(
                "The images must be a list or an array [n, height, width, 3]; pass a single image as [image]."
            )
        fitted = [_read(image, self.input_size, how) for image in images]
        return np.stack(fitted) if fitted else np.zeros((0, *self.input_size, 3), np.uint8)

    def score(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n classes"]:
        """Returns log-probabilities, computed in batches of `BATCH_SIZES`."""
        results = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(pixels), BATCH_SIZES[-1]):
            part = pixels[start : start + BATCH_SIZES[-1]]
            size = next(size for size in BATCH_SIZES if size >= len(part))
            results.append(np.asarray(self.log_probabilities(batching.pad(part, size)))[: len(part)])
        return np.concatenate(results)


def load_classifier(
    source: str | os.PathLike,
    *,
    step: int | str = "best",
    seed: Seed | None = None,
    lane: int | None = None,
    trust: bool = False,
) -> Classifier:
    """Loads a classifier, without the optimizer, the data set or the training code.

    Args:
      source: a workdir, or a file that `python -m cnn_jax.export` wrote, as jaxexport or safetensors.
      step: the checkpoint of a workdir: a number, "latest", or "best" by validation accuracy. Where the latest or the
        best is damaged, the newest intact one is read, and `notice` and a log line say so.
      seed: of a run with several seeds, the index of one (0 is the seed `config.seed`), or "ensemble" for the mean of
        the probabilities of all. None for the first, or for what an exported file holds.
      lane: the old name of `seed`, for an index.
      trust: run the program of an exported file even if networks do not need what it does; a stranger's program may
        then crash this process or worse.

    Raises:
      UserError: there is no such workdir, file, checkpoint or seed, or it is damaged.
    """
    if lane is not None:
        if seed is not None:
            raise UserError("Give seed or lane, its old name, not both.")
        seed = lane
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_workdir(path, step, seed)
    if path.exists():
        return _from_exported(path, seed, trust)
    raise UserError(f"There is no workdir {path}: train one with python -m cnn_jax.main --workdir={path} ...")


def _from_workdir(path: Path, step: int | str, seed: Seed | None) -> Classifier:
    # Imported here, because an exported file needs neither Orbax nor Flax, which take most of a second to import.
    from cnn_jax.workdir.checkpoint import restore_model

    number, variables, metadata, notice = restore_model(path / CHECKPOINT_FOLDER, step, _difference(path))
    if notice:
        logging.error("%s", notice)
    members, metadata = seeds.select(path, variables, metadata, seed)
    fitted = calibration.read(path, number, metadata.get("seed"))
    return dataclasses.replace(_from_variables(path, members, metadata, number, fitted), notice=notice)


def _from_variables(
    path: Path, members: list[Any], metadata: dict[str, Any], step: int, fitted: Calibration | None
) -> Classifier:
    from cnn_jax import models

    described, config = _described(path, metadata), metadata["config"]
    classes = len(described["class_names"])
    model = models.build(config["model"], classes, config["dtype"])
    tta = TTA.from_config(config.get("eval", {}))

    def score(one, images):
        return make_scorer(model, one, described["preprocessing"], tta)(images)

    return Classifier(
        **described,
        log_probabilities=seeds.make_mean(score, members, classes),
        source=str(path),
        step=step,
        model=(model, members if metadata.get("seed") == ENSEMBLE else members[0]),
        calibration=fitted,
    )


def _difference(workdir: Path) -> Callable[[dict[str, Any]], str]:
    """Returns a function from the metadata of a step to what shows that it belongs to another run."""
    from cnn_jax import config as config_lib

    try:
        held = files.read_json(workdir / CONFIG_FILE)
        config_lib.difference(held, held)
    except (OSError, ValueError, AttributeError):  # missing or damaged: inference can do without
        return lambda metadata: ""
    return lambda metadata: config_lib.difference(held, metadata["config"])


def _from_exported(path: Path, seed: Seed | None, trust: bool) -> Classifier:
    if path.suffix == ".safetensors":
        from cnn_jax.inference import weights

        header, members = weights.read(path)
        _check_seed(path, header, seed)
        fitted = calibration.from_json(header.get("calibration"))
        return _from_variables(path, members, header, header["step"], fitted)
    from cnn_jax.inference import artifact

    header, log_probabilities = artifact.read(path, trust)
    _check_seed(path, header, seed)
    return Classifier(
        **_described(path, header),
        log_probabilities=log_probabilities,
        source=str(path),
        step=header["step"],
        calibration=calibration.from_json(header.get("calibration")),
    )


def _check_seed(path: Path, header: dict[str, Any], seed: Seed | None) -> None:
    held = header.get("seed", 0)  # not in the header of a run with one seed
    if seed not in (None, held):
        raise UserError(
            f"{path} holds {seeds.describe(held)}: export another from the workdir, python -m cnn_jax.export "
            f"--workdir=... --seed={seed} --output={path}"
        )


def _described(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `Classifier` that are read from the metadata."""
    try:
        return {
            "class_names": tuple(metadata["class_names"]),
            "input_size": tuple(metadata["input_size"]),
            "preprocessing": Preprocessing.from_metadata(metadata["preprocessing"]),
            "metadata": metadata,
        }
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: it was written by an older cnn_jax. Train again.") from None


def make_scorer(model: Any, variables: Any, preprocessing: Preprocessing, tta: TTA = NO_TTA) -> Callable[[Any], Any]:
    """Returns a function from stored images, uint8 `[batch, height, width, 3]`, to log-probabilities.

    Args:
      model: the network.
      variables: its {params, batch_stats}.
      preprocessing: applied to the images.
      tta: test-time augmentation; the images alone by default.
    """

    def predict(inputs):
        return model.apply(variables, inputs, train=False)

    def log_probabilities(images):
        return jax.nn.log_softmax(tta(predict, preprocessing(jnp.asarray(images))))

    return log_probabilities


def _read(image: ImageLike, size: tuple[int, int], how: str) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(image, np.ndarray):
        _check_pixels(image)
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return np.asarray(image_files.fit(image_files.to_rgb(image), *size, how))
    return image_files.read(image, *size, how)


def _check_pixels(array: np.ndarray) -> None:
    """Refuses arrays that would be misread without an error: pixels scaled to [0, 1], or channels other than RGB."""
    if array.dtype != np.uint8 or array.shape[-1] != 3 or array.ndim not in (3, 4) or not all(array.shape[-3:]):
        raise UserError(
            f"An array of images must be uint8 [height, width, 3], RGB from 0 to 255; this one is {array.dtype} "
            f"{list(array.shape)}."
        )
