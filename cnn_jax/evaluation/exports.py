"""Exports the network of a run to a file, with its model card."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnn_jax.errors import UserError

if TYPE_CHECKING:
    from cnn_jax.inference import Classifier

FORMATS = ("jaxexport", "onnx", "safetensors")


class Exported(NamedTuple):
    """What was written.

    Attributes:
      classifier: the network.
      about: what the file is, in words.
      difference: between its probabilities and those of the workdir; None if the format cannot be run here.
      card: the path of the model card; None if there is none.
    """

    classifier: "Classifier"
    about: str
    difference: float | None
    card: Path | None


def choose_format(output: Path, asked: str | None, card: bool) -> str:
    """Returns the format of a file: the one that is asked for, else the one that its name ends in, else jaxexport.

    Raises:
      UserError: the file cannot be written, or not with this name.
    """
    if output.is_dir():
        raise UserError(f"The output {output} is a folder: name a file, for example {output / 'model.jaxexport'}.")
    if not output.parent.is_dir():
        raise UserError(f"The output {output} is in a folder that does not exist: create it, or choose another file.")
    suffix = output.suffix.removeprefix(".")
    kind = asked or (suffix if suffix in FORMATS else FORMATS[0])
    if kind not in FORMATS:
        raise UserError(f"There is no format {kind}: choose one of {', '.join(FORMATS)}.")
    if kind == "safetensors" and suffix != kind:
        raise UserError(f"{output} must end in .safetensors, by which predict and the page recognise the format.")
    if kind != "safetensors" and suffix == "safetensors":
        raise UserError(f"{output} ends in .safetensors, and the format is {kind}: choose another name.")
    if card and suffix == "md":
        raise UserError(f"{output} is where the model card goes: choose another name.")
    return kind


def export(workdir: Path, output: Path, kind: str, *, card: bool, step: int | str, seed: Any) -> Exported:
    """Writes a file, and compares its outputs with those of the workdir.

    Args:
      workdir: of the run.
      output: the file to write or replace.
      kind: see `choose_format`.
      card: whether to write the model card in Markdown beside it, with the end .md.
      step: see `load_classifier`.
      seed: see `load_classifier`.

    Raises:
      UserError: there is no such run, checkpoint or seed, or a file cannot be written.
    """
    from cnn_jax.evaluation import card as card_lib
    from cnn_jax.inference import exporting, load_classifier

    classifier = load_classifier(workdir, step=step, seed=seed)
    arguments = [f"--workdir={workdir}", f"--output={output}", f"--format={kind}"]
    arguments += [f"--step={step}"] + [f"--seed={seed}"] * (seed is not None) + ["--card"] * card
    command = shlex.join(["python", "-m", "cnn_jax.export", *arguments])
    described = card_lib.describe(classifier, workdir, command)
    about, difference = exporting.write(output, classifier, kind, described)
    path = output.with_suffix(".md") if card else None
    if path:
        _write_card(path, card_lib.markdown(described, output.name))
    return Exported(classifier, about, difference, path)


def _write_card(path: Path, text: str) -> None:
    from cnn_jax.utils import files

    try:
        with files.replacing(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): free space there, or choose another file.") from None
