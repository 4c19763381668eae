"""Compares finished runs: python -m cnn_jax.report RUN... --output=DIR [--note=TEXT] [--order=ladder|given]
[--nopredict].

Writes a page (index.html), results.csv, results.json, and the figures as SVG and PNG files. Runs of the same
configuration with different seeds form one row, which is compared with the row before it, seed by seed and test image
by test image. The predictions on the test images are computed from the checkpoints once, and kept in the workdirs.
"""

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report; created if missing.")
_NOTE = flags.DEFINE_string("note", "", "A sentence for the page, such as how the data differ from the original.")
_ORDER = flags.DEFINE_enum(
    "order", "ladder", ["ladder", "given"], "Order of the rows: that of the ladder, or that of the arguments."
)

_PREDICT = flags.DEFINE_bool(
    "predict",
    True,
    "Compute the predictions on the test images that a run lacks, from its checkpoint. --nopredict takes only those "
    "that earlier reports kept.",
)


def main(workdirs: list[str]) -> int:
    """Writes the report, prints where and what was left out, and returns the exit status."""
    if not workdirs:
        raise UserError("Name the workdirs of finished runs: python -m cnn_jax.report RUN... --output=DIR.")
    from cnn_jax.report.runs import write_report  # after the flags are parsed: see cnn_jax/main.py

    assert _OUTPUT.value  # required
    result = write_report(workdirs, _OUTPUT.value, _NOTE.value, _ORDER.value, _PREDICT.value)
    for path in result["left_out"]:
        print(f"{path}: not a finished run, left out")
    print(f"Written: {_OUTPUT.value}/index.html, results.csv, results.json and the figures")
    return 0


if __name__ == "__main__":
    cli.run(main, required=("output",), positional=True)
