"""The reference that the ladder repeats: its numbers, its protocol, and how runs of ours differ from it.

A Keras study of CIFAR-10 (2024, Tesla P100), https://github.com/forgivefarouk/image_classification_IN3. Each number is
of one run.
"""

from typing import Any, NamedTuple


class Reference(NamedTuple):
    """What the reference gives for a stage; accuracies as fractions, None where it gives no number.

    Attributes:
      epochs: of training.
      accuracy: on the test split.
      remark: what its text or curve adds.
      threshold_precision: at probability > 0.5.
      threshold_recall: at probability > 0.5.
      seconds_per_epoch: on a Tesla P100.
    """

    epochs: int
    accuracy: float | None = None
    remark: str = ""
    threshold_precision: float | None = None
    threshold_recall: float | None = None
    seconds_per_epoch: float | None = None


STAGES = {
    "basic": Reference(50, remark="“underfits”"),
    "baseline": Reference(50, 0.1000, "peaks near 72 %, then collapses", 0.0, 0.0),
    "batchnorm": Reference(50, 0.7883, "overfits", 0.7918, 0.7861),
    "dropout": Reference(50, 0.8083, "", 0.8269, 0.7936),
    "dropout_scheduled": Reference(50, 0.8083, "", 0.8594, 0.7661),
    "augment": Reference(100, 0.8626, "84.59 % at 50 epochs", 0.8919, 0.8438, 28),
    "transfer": Reference(10, 0.9181, seconds_per_epoch=262),
}
DATA = "cifar10"
TRAIN_EXAMPLES = 50_000


def training_images(config: dict[str, Any]) -> int | None:
    """Returns the number of training images of a flat configuration; None if it depends on files that are not known."""
    if config["data.train_examples"]:
        return config["data.train_examples"]
    if config["data.name"] != DATA:
        return None
    validation = config["data.validation"]
    return TRAIN_EXAMPLES - int(validation if validation > 1 else round(validation * TRAIN_EXAMPLES))


def differences(stage: str, config: dict[str, Any], n: int, changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Returns one phrase for each way in which runs differ from the protocol of the reference.

    Args:
      stage: a key of `STAGES`.
      config: the flat configuration of the runs, on CIFAR-10.
      n: the number of seeds.
      changed: keys in which the configuration differs from that of the stage, with both values.
    """
    images, epochs = training_images(config), STAGES[stage].epochs
    found = []
    if images != TRAIN_EXAMPLES:
        found.append(f"{images:,} training images instead of {TRAIN_EXAMPLES:,}")
    if config["epochs"] != epochs:
        found.append(f"{config['epochs']} epochs instead of {epochs}")
    found += [f"{key} {new} instead of {old}" for key, (old, new) in changed.items()]
    if config["data.validation"]:
        found.append("a validation split is monitored, not the test split")
    else:
        found.append("nothing is monitored during training; the reference monitors the test split")
    found.append(f"the mean of {n} seeds instead of one run" if n > 1 else "one run, as there")
    return found
