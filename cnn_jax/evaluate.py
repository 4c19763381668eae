"""Evaluates a run: python -m cnn_jax.evaluate --workdir=/tmp/bn [--split=test] [--report=DIR] [--step=best|latest|N]
[--seed=INDEX|ensemble].

Prints the scores and writes them to evaluation.json in the workdir, or, for another split or data set, to
evaluation-SPLIT.json or evaluation-NAME-SPLIT.json; --report=DIR adds a page with figures. To evaluate on your own
photographs, in one folder per class: --data.name=folder --data.dir=PHOTOGRAPHS.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = cli.define_step()
_read_seed = cli.define_seed()
_SPLIT = flags.DEFINE_enum("split", None, ["test", "validation", "train"], "Split to evaluate on; test by default.")
_NAME = flags.DEFINE_string(
    "data.name", None, "Another data set; 'folder' for photographs. By default that of the run."
)
_DIR = flags.DEFINE_string("data.dir", None, "Folder of the data set. By default that of the run.")
_REPORT = flags.DEFINE_string("report", None, "Folder for a report: index.html and its figures as PNG files.")


def main() -> int:
    """Evaluates, prints and writes the result; returns the exit status."""
    step, seed = cli.parse_step(_STEP.value), _read_seed()
    from cnn_jax.evaluation import results, run  # after the flags are parsed: see cnn_jax/main.py

    assert _WORKDIR.value  # required
    workdir = Path(_WORKDIR.value).expanduser()
    folder = _make_folder(_REPORT.value) if _REPORT.value else None
    done = run.evaluate(workdir, _SPLIT.value, _NAME.value, _DIR.value, step, seed)
    results.show(done.result, workdir)
    written = [results.write(done.result, workdir, results.file_name(done.result, done.examples.own))]
    if folder:
        from cnn_jax.report import html  # importing matplotlib takes a second

        written.append(html.write(folder, workdir, done.classifier, done.examples, done.log_probs, done.result))
    print(f"Written: {', '.join(map(str, written))}")
    return 0


def _make_folder(name: str) -> Path:
    """Creates the folder of the report, before anything is computed."""
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot create --report={folder}: {error.strerror}. Choose another folder.") from None
    return folder


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
