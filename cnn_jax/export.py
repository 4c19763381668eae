"""Makes one file that answers without the workdir and the network's code.

python -m cnn_jax.export --workdir=/tmp/bn --output=model.jaxexport [--step=best]
python -m cnn_jax.predict --model=model.jaxexport cat.jpg

JAX promises to read such a file for six months. The workdir is the archive: from it the file can be made anew.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, model.jaxexport for example.")
_STEP = cli.define_step()
_LANE = cli.define_lane()

LARGEST_DIFFERENCE = 1e-4  # between probabilities: what rounding may do, and no wrong program stays below


def main() -> None:
    """Exports, reads the file again and compares its answers with the workdir's."""
    step, output = cli.parse_step(_STEP.value), Path(_OUTPUT.value).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else "is in a folder that does not exist"
        raise UserError(f"--output={output} {reason}: name a file, {output / 'model.jaxexport'} for example.")

    import numpy as np

    from cnn_jax.inference import artifact, load_classifier

    classifier = load_classifier(_WORKDIR.value, step=step, lane=_LANE.value)
    header = artifact.write(output, classifier.log_probabilities, classifier.metadata, classifier.step)
    images = np.random.default_rng(0).integers(0, 256, (2, *classifier.input_size, 3), np.uint8)
    difference = np.abs(load_classifier(output)(images) - classifier(images)).max()
    if not difference <= LARGEST_DIFFERENCE:
        output.unlink()
        raise UserError(f"The exported model answers otherwise, by up to {difference:.3g}: it is removed.")
    print(
        f"{output}: {output.stat().st_size:,} bytes, step {classifier.step}, {len(classifier.class_names)} classes, "
        f"jax {header['jax']}, for {' and '.join(header['platforms'])}; answers differ from the workdir's by "
        f"{difference:.1g} at most."
    )


if __name__ == "__main__":
    cli.run(main, required=("workdir", "output"))
