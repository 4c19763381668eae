"""Scores a run: python -m cnn_jax.evaluate --workdir=/tmp/bn [--split=test] [--report=DIR] [--step=best|latest|N].

The numbers go to the terminal and to evaluation.json in the workdir; --report=DIR adds a page with figures. On your own
photographs, in one folder a class: --data.name=folder --data.dir=PHOTOGRAPHS.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = cli.define_step()
_LANE = cli.define_lane()
_SPLIT = flags.DEFINE_enum("split", None, ["test", "validation", "train"], "Which images to score; test by default.")
_NAME = flags.DEFINE_string("data.name", None, "Another data set; 'folder' for photographs. The run's own by default.")
_DIR = flags.DEFINE_string("data.dir", None, "Where the data is. Where it was in training by default.")
_REPORT = flags.DEFINE_string("report", None, "Folder for a page (index.html) and the figures in it (PNG files).")


def main() -> int:
    """Scores, prints, writes; returns the exit status."""
    step = cli.parse_step(_STEP.value)
    from cnn_jax import inference  # after the flags are parsed: see cnn_jax/main.py
    from cnn_jax.evaluation import dataset, results

    workdir = Path(_WORKDIR.value).expanduser()
    if workdir.is_file():
        raise UserError(f"{workdir} is a file: --workdir takes the folder of a run.")
    folder = _make_folder(_REPORT.value) if _REPORT.value else None
    classifier = inference.load_classifier(workdir, step=step, lane=_LANE.value)
    scored = dataset.load(classifier, _SPLIT.value, _NAME.value, _DIR.value)
    if not len(scored):
        raise UserError(f"The {scored.split} split of {scored.name} is empty: take another --split.")
    log_probs = dataset.predict(classifier, scored)
    result = {"checkpoint": str(step)} | results.measure(classifier, scored, log_probs, workdir)
    results.show(result, workdir)
    written = [results.write(result, workdir)]
    if folder:
        from cnn_jax.report import html  # matplotlib takes a second to import

        written.append(html.write(folder, workdir, classifier, scored, log_probs, result))
    print(f"Written: {', '.join(map(str, written))}")
    return 0


def _make_folder(name: str) -> Path:
    """Makes the folder of the report before anything is computed."""
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make --report={folder}: {error.strerror}. Take another folder.") from None
    return folder


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
