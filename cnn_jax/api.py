"""What the commands do, as functions for notebooks, scripts and threads; `import cnn_jax` offers them: docs/api.md.

They write what the commands write, and raise `cnn_jax.errors.UserError` where those print a line of error. None reads
the command line or ends the process.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax.inference import Classifier, load_classifier
from cnn_jax.inference.seeds import Seed
from cnn_jax.workdir import layout
from cnn_jax.workdir.records import read_metrics, scores_on_test

__all__ = [
    "Classifier",
    "TrainResult",
    "evaluate",
    "export",
    "load_classifier",
    "load_config",
    "read_metrics",
    "train",
]

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A run after training.

    Attributes:
      workdir: its folder.
      finished: whether it is complete; False where Ctrl-C or SIGTERM stopped it: `train` again resumes it.
      scores: on the test split: "accuracy", "loss", "precision", "recall", "f1", ...; None of an unfinished run.
      history: the records of all steps, as `read_metrics` returns them.
      paths: what the workdir holds: "config", "metrics", "checkpoints", "tensorboard", "times", "provenance".
    """

    workdir: Path
    finished: bool
    scores: dict[str, Any] | None
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    paths: dict[str, Path] = dataclasses.field(repr=False)


def load_config(stage: StrPath = "base", overrides: Mapping[str, Any] | None = None, /, **more: Any) -> ConfigDict:
    """Returns the configuration of a stage or config file, with the values of some keys replaced.

        load_config("batchnorm", {"data.name": "digits", "optimizer.learning_rate": 0.02}, epochs=3)

    Args:
      stage: such as "batchnorm", or the path of a config file.
      overrides: values by the full names of their keys; `python -m cnn_jax.config STAGE` lists all keys. Texts are read
        as on the command line.
      **more: further ones; keys with a dot need `**{"data.name": "digits"}`.

    Raises:
      UserError: there is no such stage or key, or it cannot have this value.
    """
    name = stage if isinstance(stage, str) else Path(stage)
    config = config_lib.load(name, {**(overrides or {}), **more})
    config_lib.validate(config)
    return config


def train(config: ConfigDict | StrPath, workdir: StrPath) -> TrainResult:
    """Trains a run, or resumes the one in `workdir`, and scores it on the test split.

    A finished run is not trained again. In the main thread, Ctrl-C saves and stops; in other threads, no signal does.

    Args:
      config: see `load_config`; or the name of a stage, for its own values.
      workdir: the folder of the run; created if there is none.

    Raises:
      UserError: an impossible configuration, unusable data, a workdir that holds another run, a loss that is not
        finite.
    """
    from cnn_jax.training import loop

    folder = Path(workdir).expanduser()
    status = loop.train(config if isinstance(config, ConfigDict) else load_config(config), str(folder))
    history = read_metrics(folder)
    names = {
        "config": layout.CONFIG_FILE,
        "metrics": layout.METRICS_FILE,
        "checkpoints": layout.CHECKPOINT_FOLDER,
        "tensorboard": layout.TENSORBOARD_FOLDER,
        "times": layout.TIMES_FILE,
        "provenance": layout.PROVENANCE_FILE,
    }
    scores = scores_on_test(history) if status == 0 else None
    scores = scores and {name: value for name, value in scores.items() if name not in ("step", "epoch", "split")}
    paths = {name: folder / file for name, file in names.items() if (folder / file).exists()}
    return TrainResult(folder, status == 0, scores, history, paths)


def evaluate(
    workdir: StrPath,
    split: str | None = None,
    *,
    data_name: str | None = None,
    data_dir: StrPath | None = None,
    step: int | str = "best",
    seed: Seed | None = None,
    report: StrPath | None = None,
) -> dict[str, Any]:
    """Scores a run on every image of a split, and writes the result to its workdir.

    The file is evaluation.json for the test split; evaluation-SPLIT.json or evaluation-NAME-SPLIT.json for others.

    Args:
      workdir: the folder of the run.
      split: "test", "validation" or "train"; None for "test", or for all images of a folder without splits.
      data_name: another data set; "folder" for photographs in `data_dir/CLASS/`. None for that of the run.
      data_dir: the folder of the data set; None for that of the run.
      step: the checkpoint: a number, "latest", or "best" by validation accuracy.
      seed: of a run with several seeds, the index of one, or "ensemble".
      report: a folder for a report with figures, index.html; None for none.

    Returns:
      What the file holds: "accuracy", "accuracy_interval", "loss", "classes", "confusion_matrix", ...

    Raises:
      UserError: there is no such run, checkpoint, seed, data set or split, or it cannot be read.
    """
    from cnn_jax.evaluation import results, run

    folder = Path(workdir).expanduser()
    done = run.evaluate(folder, split, data_name, None if data_dir is None else str(data_dir), step, seed)
    results.write(done.result, folder, results.file_name(done.result, done.examples.own))
    if report is not None:
        from cnn_jax.report import html  # importing matplotlib takes a second

        target = Path(report).expanduser()
        target.mkdir(parents=True, exist_ok=True)
        html.write(target, folder, done.classifier, done.examples, done.log_probs, done.result)
    return done.result


def export(
    workdir: StrPath,
    output: StrPath,
    *,
    format: str | None = None,
    card: bool = False,
    step: int | str = "best",
    seed: Seed | None = None,
) -> Path:
    """Writes a single-file model (network, weights and preprocessing), as the command does; returns its path.

    The outputs of the file are compared with those of the workdir; those of ONNX files where onnxruntime is installed.

    Args:
      workdir: the folder of the run.
      output: the file, such as "model.jaxexport"; its folder must exist.
      format: "jaxexport", "onnx" or "safetensors"; None for the one that `output` ends in, else jaxexport.
      card: whether to write a model card in Markdown too, beside the file, with the end .md.
      step: see `evaluate`.
      seed: see `evaluate`.

    Raises:
      UserError: there is no such run, checkpoint, seed or format, or the file cannot be written.
    """
    from cnn_jax.evaluation import exports

    path = Path(output).expanduser()
    kind = exports.choose_format(path, format, card)
    exports.export(Path(workdir).expanduser(), path, kind, card=card, step=step, seed=seed)
    return path
