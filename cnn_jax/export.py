"""Exports a single-file model that runs without the workdir and without the network's code.

python -m cnn_jax.export --workdir=/tmp/bn --output=model.jaxexport [--step=best] [--seed=0]
python -m cnn_jax.predict --model=model.jaxexport cat.jpg

JAX guarantees to read such a file for six months. Keep the workdir: the model can be exported from it again.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write, for example model.jaxexport.")
_STEP = cli.define_step()
_read_seed = cli.define_seed()

LARGEST_DIFFERENCE = 1e-4  # between probabilities: above rounding errors, below those of a wrong program


def main() -> None:
    """Exports a model, loads the file and compares its outputs with those of the workdir."""
    assert _WORKDIR.value and _OUTPUT.value  # required
    step, seed, output = cli.parse_step(_STEP.value), _read_seed(), Path(_OUTPUT.value).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else "is in a folder that does not exist"
        raise UserError(f"--output={output} {reason}: name a file, for example {output / 'model.jaxexport'}.")

    import numpy as np

    from cnn_jax.inference import artifact, load_classifier, seeds

    classifier = load_classifier(_WORKDIR.value, step=step, seed=seed)
    header = artifact.write(output, classifier.log_probabilities, classifier.metadata, classifier.step)
    images = np.random.default_rng(0).integers(0, 256, (2, *classifier.input_size, 3), np.uint8)
    difference = np.abs(load_classifier(output)(images) - classifier(images)).max()
    if not difference <= LARGEST_DIFFERENCE:
        output.unlink()
        raise UserError(
            f"Exported outputs differ from those of the workdir by up to {difference:.3g}: the file was removed."
        )
    of = "" if classifier.seed is None else f", {seeds.describe(classifier.seed)}"
    print(
        f"{output}: {output.stat().st_size:,} bytes, step {classifier.step}{of}, "
        f"{len(classifier.class_names)} classes, "
        f"jax {header['jax']}, for {' and '.join(header['platforms'])}; outputs equal to the workdir's "
        f"(maximum difference {difference:.1g})."
    )


if __name__ == "__main__":
    cli.run(main, required=("workdir", "output"))
