"""Measures the rule by which the page says that a picture shows none of the classes.

    python scripts/held_out_classes.py --runs=DIR --output=reports/held_out_classes.json [--cifar10=TFDS_DIR]

Networks are trained on some classes of a data set, and meet test images of these classes and of the others. A false
alarm is a test image of a known class that the rule rejects, a miss an image of another class that it accepts. Every
threshold is the one that 95 % of the validation images reach, except that of `fixed`, the rule of earlier versions.
Digits train the quickstart, CIFAR-10 (with --cifar10) the stage transfer_lite.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax import runtime  # noqa: E402

runtime.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import special  # noqa: E402

from cnn_jax import data  # noqa: E402
from cnn_jax.data import batching  # noqa: E402
from cnn_jax.inference import calibration, load_classifier  # noqa: E402
from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402

TRAIN, TEST = 150, 60  # images per class at most
STAGES = {"digits": "quickstart", "cifar10": "transfer_lite"}


def main() -> None:
    """Trains, measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cifar10", default="")
    parser.add_argument("--data", default="digits,cifar10")
    parser.add_argument("--known", default="2,3,8", help="numbers of classes to train on")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    rows = []
    for name, stage in STAGES.items():
        if name not in arguments.data.split(",") or (name == "cifar10" and not arguments.cifar10):
            continue
        source = {"name": name, "dir": arguments.cifar10 if name == "cifar10" else ""}
        dataset = data.load(SimpleNamespace(validation=0, train_examples=0, split_seed=0, image_size=0, **source))
        for known in map(int, arguments.known.split(",")):
            for repeat in range(arguments.repeats):
                workdir = arguments.runs / f"{name}-{known}-{repeat}"
                chosen = sorted(np.random.default_rng([repeat, known]).permutation(len(dataset.class_names))[:known])
                train(dataset, stage, [int(label) for label in chosen], workdir, repeat, arguments.epochs)
                measured = measure(dataset, [int(label) for label in chosen], workdir)
                rows.append({"data": name, "stage": stage, "classes": known, "repeat": repeat} | measured)
                print(json.dumps(rows[-1]), flush=True)
    result = {"passing": calibration.PASSING, **revision(ROOT, ("cnn_jax", "configs")), "runs": rows}
    with files.replacing(arguments.output) as file:
        file.write(json.dumps(result, indent=1) + "\n")


def train(dataset, stage: str, chosen: list[int], workdir: Path, seed: int, epochs: int) -> None:
    """Trains and evaluates a network on the chosen classes, unless it has been."""
    if (workdir / "evaluation.json").exists():
        return
    folder = workdir.with_name(f"{workdir.name}-images")
    for part, most in (("train", TRAIN), ("test", TEST)):
        for label in chosen:
            target = folder / part / dataset.class_names[label]
            target.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images_of(dataset, part, label, most)):
                Image.fromarray(image).save(target / f"{number}.png")
    size = [] if stage == "transfer_lite" else ["--config.data.image_size=32"]
    for command in (
        ["main", f"--config={stage}", "--config.data.name=folder", f"--config.data.dir={folder}", *size,
         f"--config.seed={seed}", f"--config.epochs={epochs}", "--config.tensorboard=off"],
        ["evaluate"],
    ):  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", f"cnn_jax.{command[0]}", f"--workdir={workdir}", *command[1:]],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip


def images_of(dataset, part: str, label: int, most: int) -> np.ndarray:
    """Returns the first images of a class."""
    split = getattr(dataset, part)
    return split.source.images(split.indices[np.flatnonzero(split.labels == label)[:most]])


def measure(dataset, chosen: list[int], workdir: Path) -> dict:
    """Returns accuracy, and of each rule the shares of false alarms and misses."""
    classifier = load_classifier(workdir)
    names = {name: column for column, name in enumerate(classifier.class_names)}
    own = [(label, images_of(dataset, "test", label, TEST)) for label in chosen]
    others = [label for label in range(len(dataset.class_names)) if label not in chosen]
    known = score(classifier, np.concatenate([images for _, images in own]))
    unknown = score(classifier, np.concatenate([images_of(dataset, "test", label, TEST) for label in others]))
    labels = np.concatenate([[names[dataset.class_names[label]]] * len(images) for label, images in own])
    validation = score(classifier, validation_images(classifier))
    fitted = classifier.calibration
    rules = {
        "max_probability": lambda logits: special.softmax(logits, -1).max(-1),
        "calibrated_max_probability": lambda logits: np.exp(fitted(logits).max(-1)),
        "entropy": lambda logits: -special.entr(special.softmax(logits / fitted.temperature, -1)).sum(-1),
        "energy": lambda logits: special.logsumexp(logits, -1),
    }
    found = {}
    for name, rule in rules.items():
        threshold = np.quantile(rule(validation), 1 - calibration.PASSING, method="lower")
        found[name] = shares(rule(known), rule(unknown), threshold)
    chance = 1 / len(chosen)
    fixed = rules["calibrated_max_probability"]
    found["fixed"] = shares(fixed(known), fixed(unknown), chance + 4 / 9 * (1 - chance))
    return {
        "known": [dataset.class_names[label] for label in chosen],
        "accuracy": round(float((known.argmax(-1) == labels).mean()), 4),
        "threshold": round(fitted.threshold, 4),
        "validation_images": len(validation),
        "known_images": len(known),
        "unknown_images": len(unknown),
        "rules": found,
    }


def validation_images(classifier) -> np.ndarray:
    """Returns the validation images of a run."""
    from cnn_jax.evaluation import dataset

    examples = dataset.load(classifier, "validation")
    return classifier.fit(examples.images(slice(None)))


def score(classifier, images: np.ndarray) -> np.ndarray:
    """Returns logits."""
    model, variables = classifier.model
    logits = jax.jit(lambda pixels: model.apply(variables, classifier.preprocessing(pixels), train=False))
    pixels = classifier.fit(list(images))
    parts = [logits(batching.pad(pixels[start : start + 50], 50)) for start in range(0, len(pixels), 50)]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(pixels)]


def shares(known: np.ndarray, unknown: np.ndarray, threshold: float) -> dict[str, float]:
    """Returns the shares of false alarms and misses, and the area under the ROC curve, which needs no threshold."""
    ranks = np.concatenate([known, unknown]).argsort().argsort()[: len(known)] + 1
    area = (ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown))
    return {
        "false_alarms": round(float((known < threshold).mean()), 4),
        "misses": round(float((unknown >= threshold).mean()), 4),
        "auroc": round(float(area), 4),
    }


if __name__ == "__main__":
    main()
