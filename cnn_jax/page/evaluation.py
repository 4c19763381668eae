"""The page's second tab: how good a run is, and how it learned."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from cnn_jax.errors import UserError
from cnn_jax.workdir.layout import EVALUATION_FILE, METRICS_FILE


def read_evaluation(workdir: Path) -> dict[str, Any] | None:
    """Returns what `python -m cnn_jax.evaluate` measured of a run; None where it was not run.

    Raises:
      UserError: the file is damaged.
    """
    try:
        evaluation = json.loads((workdir / EVALUATION_FILE).read_text())
        temperature, classes = evaluation["temperature"], len(evaluation["class_names"])
        whole = np.shape(evaluation["confusion_matrix"]) == (classes, classes)
        if not whole or (temperature is not None and not 0 < temperature < math.inf):
            raise ValueError
        return evaluation
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError):
        raise UserError(f"{EVALUATION_FILE} of this run is damaged. Evaluate it again:") from None


def read_temperature(workdir: Path, step: int) -> float | None:
    """Returns what calibrates the probabilities of a run at a step; None where it was not measured."""
    try:
        evaluation = read_evaluation(workdir)
    except UserError:  # the second tab says so
        return None
    return evaluation["temperature"] if evaluation and evaluation["step"] == step else None


def show_evaluation(workdir: Path, step: int) -> None:
    """Draws the numbers of the last evaluation, its confusion matrix, and the learning curves.

    Args:
      workdir: the run.
      step: of the network that the page asks; it may have been trained further since the evaluation.
    """
    problem = "This run has not been evaluated yet. This does it:"
    try:
        evaluation = read_evaluation(workdir)
    except UserError as error:
        evaluation, problem = None, str(error)
    if evaluation and evaluation["step"] != step:
        problem = (
            f"This is of step {evaluation['step']:,}; the network is now of step {step:,}. This brings it up to date:"
        )
    if not evaluation or evaluation["step"] != step:
        st.markdown(problem)
        st.code(f"python -m cnn_jax.evaluate --workdir={shlex.quote(str(workdir))}", "bash", wrap_lines=True)
    if evaluation:
        _show_numbers(evaluation)
        st.subheader("What it takes for what", anchor=False)
        st.image(_draw_confusion(evaluation["confusion_matrix"], evaluation["class_names"]), alt="Confusion matrix")
    st.subheader("How it learned", anchor=False)
    path = workdir / METRICS_FILE
    if path.exists():
        st.image(_draw_curves(str(workdir), path.stat().st_mtime_ns), alt="Loss and accuracy over the epochs")
        st.caption("The star is the network of the last epoch. The page asks the best one, by validation accuracy.")
    else:
        st.caption("This run recorded nothing.")


def _show_numbers(evaluation: dict[str, Any]) -> None:
    with st.container(horizontal=True):
        st.metric("Accuracy", f"{evaluation['accuracy']:.1%}", help="The share of the images that it gets right.")
        st.metric("Precision", f"{evaluation['precision']:.1%}", help="Of what it calls a class, the share that is.")
        st.metric("Recall", f"{evaluation['recall']:.1%}", help="Of what is a class, the share that it calls so.")
        st.metric("F1", f"{evaluation['f1']:.1%}", help="The harmonic mean of precision and recall, over the classes.")
    st.caption(
        f"{evaluation['examples']:,} images, split “{evaluation['split']}”, after step {evaluation['step']:,}. "
        "Precision, recall and F1 are averages over the classes."
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _draw_confusion(matrix: list[list[int]], class_names: list[str]) -> bytes:
    from cnn_jax.report import figures  # matplotlib takes a second to import, and the first tab does without

    return figures.png(figures.confusion_matrix(np.array(matrix), class_names))


@st.cache_data(max_entries=16, show_spinner=False)
def _draw_curves(workdir: str, changed: int) -> bytes:
    from cnn_jax.report import figures
    from cnn_jax.workdir.records import read_metrics

    del changed  # a part of the key: a run that goes on is drawn anew
    return figures.png(figures.learning_curves(read_metrics(Path(workdir))))
