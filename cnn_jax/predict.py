"""Classifies images: python -m cnn_jax.predict --workdir=/tmp/bn IMAGE... [--top_k=3] [--json | --csv].

An IMAGE is a file, a folder (searched recursively), or - for standard input. --model=FILE takes a file written by
python -m cnn_jax.export instead of a workdir. Once python -m cnn_jax.evaluate has run, probabilities are calibrated,
unless --nocalibrate is given. Images that cannot be read are named on standard error; the others are classified, and
the exit status is 1. Of a run with several seeds, --seed=INDEX|ensemble chooses the network.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from cnn_jax import cli
from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.utils import progress, text

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_MODEL = flags.DEFINE_string("model", None, "File written by python -m cnn_jax.export, instead of a workdir.")
_STEP = cli.define_step()
_read_seed = cli.define_seed()
_TOP_K = flags.DEFINE_integer("top_k", 3, "Number of classes to print, the most probable first.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per line.")
_CSV = flags.DEFINE_bool("csv", False, "Print comma-separated values, with a header.")
_FIT = flags.DEFINE_enum("fit", "crop", images.FITS, "How to fit images that are not square.")
_MIRROR = flags.DEFINE_bool("mirror", False, "Average over each image and its mirror image.")
_TRUST = flags.DEFINE_bool("trust", False, "Run the program of --model even if it does what no network needs.")
_CALIBRATE = flags.DEFINE_bool(
    "calibrate", True, "Apply the temperature that python -m cnn_jax.evaluate fitted, if it has run."
)

_WIDEST_NAME = 100
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def main(arguments: Sequence[str]) -> int:
    """Classifies all images and returns the exit status: 1 if any cannot be read."""
    if bool(_WORKDIR.value) == bool(_MODEL.value):
        both = "not both" if _MODEL.value else "to choose a network"
        raise UserError(f"Give --workdir=DIR (a trained run) or --model=FILE (an exported one), {both}.")
    if _MODEL.value and flags.FLAGS["step"].present:
        raise UserError("--step chooses a checkpoint of a workdir; an exported model has only one step.")
    seed = _read_seed()
    if _MODEL.value and seed is not None:
        raise UserError("--seed chooses a network of a workdir; an exported model holds the one that export was given.")
    if _JSON.value and _CSV.value:
        raise UserError("Give --json or --csv, not both.")
    if _MODEL.value and not os.path.isfile(_MODEL.value):
        raise UserError(
            f"There is no file {_MODEL.value}: write one with python -m cnn_jax.export --output={_MODEL.value} ..."
        )
    step, names = cli.parse_step(_STEP.value), images.find(arguments)

    # Imported after the checks, so that a mistyped flag is reported without loading JAX.
    from cnn_jax.inference import batch, load_classifier, seeds

    classifier = load_classifier(_MODEL.value or _WORKDIR.value or "", step=step, seed=seed, trust=_TRUST.value)
    if classifier.seed is not None and sys.stderr:
        print(f"{classifier.source}: {seeds.describe(classifier.seed)}.", file=sys.stderr)
    calibration = classifier.calibration if _CALIBRATE.value else None
    if calibration and sys.stderr:
        own = "; --nocalibrate prints the network's own" if calibration.changes else ""
        print(f"Probabilities {calibration.about}{own}.", file=sys.stderr)
    unreadable = 0
    with _silent_libraries(), _Output(classifier, names) as output:
        options = {"fit": _FIT.value, "mirror": _MIRROR.value, "calibrate": _CALIBRATE.value}
        for prediction in batch.predict(classifier, names, **options):
            unreadable += bool(prediction.error)
            output.write(prediction)
    return 1 if unreadable else 0


class _Output:
    """Writes predictions to standard output as they arrive, errors and a progress bar to standard error."""

    def __init__(self, classifier: Any, names: Sequence[str]):
        self._class_names = class_names = classifier.class_names
        self._chosen = {} if classifier.seed is None else {"seed": classifier.seed}  # of a run with several
        self._name_width = min(max(cell_len(text.printable(name)) for name in names), _WIDEST_NAME)
        self._class_width = max(cell_len(text.printable(name)) for name in class_names)
        if sys.stdout is None:
            raise UserError("Standard output is closed, and the predictions are written there.")
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]  # file names need not be valid text
        self._bar = progress.bar(shown=len(names) > 1)
        self._task = self._bar.add_task("Classifying images", total=len(names))
        # On one terminal with the bar, predictions are printed above it.
        self._console = self._bar.console if self._bar.console.is_terminal and sys.stdout.isatty() else Console()

    def __enter__(self) -> "_Output":
        self._bar.start()
        if _CSV.value:
            columns = range(1, min(_TOP_K.value, len(self._class_names)) + 1)
            header = ["image", *(f"{what}_{i}" for i in columns for what in ("class", "probability"))]
            self._line(_csv(header))
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def write(self, prediction: Any) -> None:
        """Writes one `cnn_jax.inference.batch.Prediction`, or its error."""
        if prediction.error:
            self._bar.console.print(Text(f"Error: {text.printable(prediction.error)}"), soft_wrap=True)
        elif _JSON.value:
            top = [{"class": label, "probability": value} for label, value in self._best(prediction.probabilities)]
            self._line(json.dumps({"image": prediction.name, "top": top} | self._chosen))
        elif _CSV.value:
            self._line(_csv([prediction.name, *itertools.chain(*self._best(prediction.probabilities))]))
        else:
            self._line(self._row(text.printable(prediction.name), self._best(prediction.probabilities)))
        self._bar.advance(self._task)

    def _best(self, probabilities: Any) -> list[tuple[str, float]]:
        order: list[int] = probabilities.argsort(kind="stable")[::-1][: _TOP_K.value].tolist()
        # Through text, because float(float32) prints digits beyond its precision.
        return [(self._class_names[i], float(str(probabilities[i]))) for i in order]

    def _row(self, name: str, best: list[tuple[str, float]]) -> Text:
        row = Text(name + " " * (self._name_width - cell_len(name)))
        for i, (label, probability) in enumerate(best):
            label = text.printable(label)
            padded = label + " " * (self._class_width - cell_len(label))
            row.append(f"  {padded} {100 * probability:5.1f} %", style="bold" if i == 0 else "dim")
        return row

    def _line(self, line: str | Text) -> None:
        try:
            if self._console.is_terminal:
                self._console.print(line if isinstance(line, Text) else Text(line), soft_wrap=True)
            else:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            cli.discard_output()
            raise UserError(f"The predictions cannot be written ({error.strerror}).") from None


def _csv(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(_inert, values))
    return line.getvalue().removesuffix("\n")


def _inert(value: Any) -> Any:
    """Returns a cell that spreadsheets show rather than run: an apostrophe precedes what would be a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Silences file descriptor 2 for C libraries, not for Python: libtiff writes messages on damaged files to it."""
    python = sys.stderr
    if python is None:  # it was closed before the program started
        yield
        return
    saved = os.dup(2)
    sys.stderr = os.fdopen(os.dup(saved), "w", encoding=python.encoding, errors="backslashreplace", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = python
        os.dup2(saved, 2)
        os.close(saved)


if __name__ == "__main__":
    cli.run(main, positional=True)
