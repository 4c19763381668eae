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

from pathlib import Path
from typing import Any

from absl import flags

from cnn_jax import cli
from cnn_jax.evaluation import exports

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write, for example model.jaxexport.")
_FORMAT = flags.DEFINE_enum(
    "format", None, exports.FORMATS, "Format; by default the one that the end of --output names."
)
_CARD = flags.DEFINE_bool("card", False, "Also write a model card in Markdown, beside the file.")
_STEP = cli.define_step()
_read_seed = cli.define_seed()


def main() -> None:
    """Exports a model, loads the file and compares its outputs with those of the workdir."""
    assert _WORKDIR.value and _OUTPUT.value  # required
    step, seed, output = cli.parse_step(_STEP.value), _read_seed(), Path(_OUTPUT.value).expanduser()
    kind = exports.choose_format(output, _FORMAT.value, _CARD.value)
    workdir = Path(_WORKDIR.value).expanduser()
    classifier, about, difference, card = exports.export(workdir, output, kind, card=_CARD.value, step=step, seed=seed)

    from cnn_jax.inference import seeds

    written = [f"{output}: {output.stat().st_size:,} bytes", *([str(card)] if card else [])]
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


if __name__ == "__main__":
    cli.run(main, required=("workdir", "output"))
