"""Exports a trained network to one file.

python -m cnn_jax.export --workdir=/tmp/bn --output=model.jaxexport [--step=best] [--seed=0] [--card]
python -m cnn_jax.predict --model=model.jaxexport cat.jpg

--format=jaxexport|onnx|safetensors; by default the one that the end of --output names, else jaxexport.

- jaxexport: network, weights and preprocessing as a program of JAX, for any batch size, on CPU and CUDA. JAX guarantees
  to read such a file for six months.
- onnx: the same for other runtimes; takes images uint8 [batch, height, width, 3] and returns log-probabilities.
- safetensors: the parameters by name, without a program; `predict` and the page read it, as do other libraries.

Keep the workdir: the model can be exported from it again. --card also writes a model card in Markdown, MODEL.md.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

FORMATS = ("jaxexport", "onnx", "safetensors")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write, for example model.jaxexport.")
_FORMAT = flags.DEFINE_enum("format", None, FORMATS, "Format; by default the one that the end of --output names.")
_CARD = flags.DEFINE_bool("card", False, "Also write a model card in Markdown, beside the file.")
_STEP = cli.define_step()
_read_seed = cli.define_seed()


def main() -> None:
    """Exports a model, loads the file and compares its outputs with those of the workdir."""
    assert _WORKDIR.value and _OUTPUT.value  # required
    step, seed, output = cli.parse_step(_STEP.value), _read_seed(), Path(_OUTPUT.value).expanduser()
    if output.is_dir():
        raise UserError(f"--output={output} is a folder: name a file, for example {output / 'model.jaxexport'}.")
    if not output.parent.is_dir():
        raise UserError(f"--output={output} is in a folder that does not exist: create it, or choose another file.")
    suffix = output.suffix.removeprefix(".")
    kind = _FORMAT.value or (suffix if suffix in FORMATS else "jaxexport")
    if kind == "safetensors" and suffix != kind:
        raise UserError(
            f"--output={output} must end in .safetensors, by which predict and the page recognise the format."
        )
    if kind != "safetensors" and suffix == "safetensors":
        raise UserError(f"--output={output} ends in .safetensors, and --format is {kind}: choose another name.")
    if _CARD.value and output.suffix == ".md":
        raise UserError(f"--output={output} is where --card writes the model card: choose another name.")

    from cnn_jax.evaluation import card as card_lib
    from cnn_jax.inference import exporting, load_classifier, seeds

    classifier = load_classifier(_WORKDIR.value, step=step, seed=seed)
    card = card_lib.describe(classifier, Path(_WORKDIR.value).expanduser(), sys.argv[1:])
    about, difference = exporting.write(output, classifier, kind, card)
    written = [f"{output}: {output.stat().st_size:,} bytes"]
    if _CARD.value:
        written.append(_write_card(output.with_suffix(".md"), card_lib.markdown(card, output.name)))
    of = "" if classifier.seed is None else f", {seeds.describe(classifier.seed)}"
    print(
        f"{'; '.join(written)}, step {classifier.step}{of}, {len(classifier.class_names)} classes, {about}; "
        f"{_comparison(difference)}{_calibration(classifier, kind)}."
    )


def _comparison(difference: float | None) -> str:
    if difference is None:
        return "outputs not compared, which needs onnxruntime: pip install 'cnn_jax[onnx]'"
    return f"outputs equal to the workdir's (maximum difference {difference:.1g})"


def _calibration(classifier: Any, kind: str) -> str:
    if classifier.calibration is None:
        return ""
    if not classifier.calibration.changes:
        return f"; its probabilities {classifier.calibration.about}"
    use = "to divide the log-probabilities by" if kind == "onnx" else "and predict and the page apply it"
    return f"; the temperature {classifier.calibration.temperature:.3f} is in the file, {use}"


def _write_card(path: Path, text: str) -> str:
    from cnn_jax.utils import files

    try:
        with files.replacing(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror}): free space there, or choose another --output."
        ) from None
    return str(path)


if __name__ == "__main__":
    cli.run(main, required=("workdir", "output"))
