"""The evaluation tab of the page: scores, confusion matrix and learning curves of a run."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from cnn_jax.errors import UserError
from cnn_jax.evaluation import results
from cnn_jax.inference import Classifier, calibration, seeds
from cnn_jax.utils import files, text
from cnn_jax.workdir.layout import EVALUATION_FILE, METRICS_FILE


def read_evaluation(workdir: Path) -> dict[str, Any] | None:
    """Returns the result of `python -m cnn_jax.evaluate` for a run; None if it has not been evaluated.

    Raises:
      UserError: the file is damaged.
    """
    try:
        evaluation = files.read_json(workdir / EVALUATION_FILE)
        calibration.from_json(evaluation)
        classes = len(evaluation["class_names"])
        if np.shape(evaluation["confusion_matrix"]) != (classes, classes):
            raise ValueError
        return evaluation
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError):
        raise UserError(f"{EVALUATION_FILE} of this run is damaged. To evaluate it again:") from None


def show_evaluation(workdir: Path, classifier: Classifier) -> None:
    """Draws the numbers of the last evaluation, its confusion matrix, and the learning curves.

    Args:
      workdir: the run.
      classifier: the network on the page, which may be of a later step or another seed than the evaluation.
    """
    problem = "This run has not been evaluated yet. To evaluate it:"
    try:
        evaluation = read_evaluation(workdir)
    except UserError as error:
        evaluation, problem = None, str(error)
    if evaluation and evaluation["step"] != classifier.step:
        problem = (
            f"This evaluation is of step {evaluation['step']:,}; the network is now at step {classifier.step:,}. To "
            "update it:"
        )
    elif evaluation:
        problem = "This evaluation is of another choice of seeds than the network on this page. To update it:"
    if not evaluation or not results.belongs(evaluation, classifier):
        st.markdown(problem)
        seed = "" if classifier.seed is None else f" --seed={classifier.seed}"
        st.code(f"python -m cnn_jax.evaluate --workdir={shlex.quote(str(workdir))}{seed}", "bash", wrap_lines=True)
    if evaluation:
        _show_numbers(evaluation)
        st.subheader("Confusion matrix", anchor=False)
        st.image(_draw_confusion(evaluation["confusion_matrix"], evaluation["class_names"]), alt="Confusion matrix")
    st.subheader("Learning curves", anchor=False)
    path = workdir / METRICS_FILE
    if path.exists():
        st.image(_draw_curves(str(workdir), path.stat().st_mtime_ns), alt="Loss and accuracy over the epochs")
        st.caption("The star is the network after the last epoch; this page uses the one of best validation accuracy.")
    else:
        st.caption("This run has no records.")


def _show_numbers(evaluation: dict[str, Any]) -> None:
    with st.container(horizontal=True):
        st.metric(
            "Accuracy", f"{evaluation['accuracy']:.1%}", help="Share of the images that are classified correctly."
        )
        st.metric(
            "Precision", f"{evaluation['precision']:.1%}", help="Share of the predictions of a class that are right."
        )
        st.metric("Recall", f"{evaluation['recall']:.1%}", help="Share of the images of a class that are found.")
        st.metric("F1", f"{evaluation['f1']:.1%}", help="Harmonic mean of precision and recall.")
    seed = "" if evaluation.get("seed") is None else f", {seeds.describe(evaluation['seed'])}"
    st.caption(
        f"{text.count(evaluation['examples'], 'image')}, split “{evaluation['split']}”, "
        f"step {evaluation['step']:,}{seed}. Precision, recall and F1 are averages over the classes."
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _draw_confusion(matrix: list[list[int]], class_names: list[str]) -> bytes:
    from cnn_jax.report import figures  # importing matplotlib takes a second, and the first tab does not need it

    return figures.png(figures.confusion_matrix(np.array(matrix), class_names))


@st.cache_data(max_entries=16, show_spinner=False)
def _draw_curves(workdir: str, changed: int) -> bytes:
    from cnn_jax.report import figures
    from cnn_jax.workdir.records import read_metrics

    del changed  # part of the cache key: the curves are drawn again if the run continues
    return figures.png(figures.learning_curves(read_metrics(Path(workdir))))
