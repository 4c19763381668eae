"""Web page that classifies uploaded pictures.

python -m cnn_jax.page --workdir=runs/batchnorm         or: streamlit run cnn_jax/app.py -- --workdir=runs/batchnorm

--model=FILE serves an exported model. --workdir may be a folder of runs, of which visitors choose one. Of a run with
several seeds, --seed=INDEX|ensemble chooses the network. The page is served to this computer only, unless
--server.address (--address of cnn_jax.page) says otherwise.

Of an upload, a thumbnail and the network's input are kept in memory until the visitor leaves; nothing is written to
disk.
"""

from cnn_jax import runtime

runtime.prepare(keep_memory=False)  # before JAX is imported

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import streamlit as st
from starlette.formparsers import MultiPartParser
from streamlit.runtime.scriptrunner import get_script_run_ctx

from cnn_jax import cli
from cnn_jax.errors import UserError
from cnn_jax.inference import Classifier, calibration, load_classifier, seeds
from cnn_jax.inference.calibration import Calibration
from cnn_jax.inference.saliency import make_grad_cam, make_saliency, overlay
from cnn_jax.page import cards, pictures, wording
from cnn_jax.page.evaluation import show_evaluation
from cnn_jax.page.pictures import MAX_PICTURES, Picture
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER

BARS = 5

_FITS = {"crop": "Crop to the centre", "pad": "Add black bars", "stretch": "Stretch"}
_MAPS = {
    True: (
        "Show which regions mattered",
        "Orange where the picture speaks for the predicted class (Grad-CAM, from the network's last convolution). It "
        "shows what the prediction depends on, not whether it is right.",
        "Which regions mattered: the orange ones",
    ),
    False: (
        "Show which pixels mattered",
        "Orange where a small change of a pixel changes the prediction most: the gradient of the log-probability of "
        "the predicted class. It shows what the prediction depends on, not whether it is right.",
        "Which pixels mattered: the orange ones",
    ),
}


class Arguments(NamedTuple):
    """The arguments of the page: a workdir or folder of runs, or an exported file."""

    path: Path
    seed: seeds.Seed | None
    trust: bool


@dataclasses.dataclass(frozen=True)
class Network:
    """A loaded network, shared by all visitors.

    Attributes:
      classifier: compiled for one image at a time.
      scale: uint8 `[1, height, width, 3]` to the resized image in [0, 1], as the network takes it; compiled.
      explain: from the same to the map of what the prediction depends on; compiled on first use. None for an exported
        program, which has no gradients.
      regions: whether the map shows regions (Grad-CAM) rather than pixels.
    """

    classifier: Classifier
    scale: Callable[[np.ndarray], Any]
    explain: Callable[[np.ndarray], Any] | None
    regions: bool


def main() -> None:
    """Draws the page; streamlit runs it again after every interaction."""
    st.set_page_config("What is in the picture?", page_icon="🔎", layout="centered")
    _keep_uploads_in_memory()
    st.html(cards.STYLE)
    st.title("What is in the picture?", anchor=False)
    try:
        given = parse_arguments(sys.argv[1:])
        source = given.path if given.path.is_file() else choose_run(given.path)
        changed = source if source.is_file() else source / CHECKPOINT_FOLDER
        network = load_network(str(source), given.seed, given.trust, changed.stat().st_mtime_ns)
    except UserError as error:
        explain_usage(str(error))
        return
    classifier = network.classifier
    if classifier.notice:
        st.warning(classifier.notice)
    if source.is_file():
        show_predictions(network, classifier.calibration)
    else:
        # The evaluation is drawn only when its tab is open, because figures take seconds and predictions milliseconds.
        predictions, evaluation = st.tabs(["Try it", "Evaluation"], key="tab", on_change="rerun")
        with predictions:  # the network is cached, and may be evaluated later
            show_predictions(network, calibration.read(source, classifier.step, classifier.seed))
        with evaluation:
            if evaluation.open:
                show_evaluation(source, classifier)


def parse_arguments(arguments: list[str]) -> Arguments:
    """Returns the values of `--workdir` or `--model`, `--seed` and `--trust`.

    Raises:
      UserError: no network is given (an empty message), the seed is mistyped, or another argument is given.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--seed")
    parser.add_argument("--trust", action="store_true")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}.") from None
    if rest:
        raise UserError(f"Unexpected argument {rest[0]}; usage: streamlit run cnn_jax/app.py -- --workdir=WORKDIR")
    if known.workdir and known.model:
        raise UserError("Give --workdir=WORKDIR (a trained run) or --model=FILE (an exported one), not both.")
    if not known.workdir and not known.model:
        raise UserError("")
    path = Path(known.workdir or known.model).expanduser().resolve()
    if known.model and not path.is_file():
        raise UserError(f"There is no file {path}.")
    return Arguments(path, None if known.seed is None else cli.parse_seed(known.seed), known.trust)


def explain_usage(reason: str) -> None:
    """Draws instructions for starting the page with a trained network.

    Args:
      reason: why there is no network; empty if no network was given.
    """
    if reason:
        st.warning(_plain(reason))
    st.markdown(
        "This page classifies pictures with a trained network. To train one on handwritten digits, in one or two "
        "minutes and without a download:"
    )
    st.code("python -m cnn_jax.main --config=quickstart --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.markdown("To start the page with this or any other run:")
    st.code("python -m cnn_jax.page --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.caption(
        "If --workdir is a folder of several runs, the page lets you choose one; --model=FILE serves an exported file."
    )


def choose_run(workdir: Path) -> Path:
    """Returns the run to use; of a folder with several, draws a selection box.

    Args:
      workdir: a run, or a folder of runs.

    Raises:
      UserError: there is no run.
    """
    if is_run(workdir):
        return workdir
    if not workdir.is_dir():
        raise UserError(f"There is no folder {workdir}.")
    try:
        runs = sorted(path for path in workdir.iterdir() if is_run(path))
    except OSError:  # no permission to list the folder
        runs = []
    if not runs:
        raise UserError(f"{workdir} holds no trained network: it has no folder “{CHECKPOINT_FOLDER}”.")
    return runs[0] if len(runs) == 1 else st.selectbox("Network", runs, format_func=lambda path: path.name)


def is_run(path: Path) -> bool:
    """Returns whether a folder is the workdir of a run with checkpoints."""
    try:
        return (path / CHECKPOINT_FOLDER).is_dir()
    except OSError:  # no permission
        return False


@st.cache_resource(max_entries=4, show_spinner="Loading the network …")
def load_network(source: str, seed: seeds.Seed | None, trust: bool, changed: int) -> Network:
    """Loads and compiles a network, so that visitors do not wait for it.

    Args:
      source: a run, whose best checkpoint is used, or an exported file.
      seed: see `load_classifier`.
      trust: see `load_classifier`.
      changed: modification time of its checkpoints; part of the cache key, so that later checkpoints are loaded.

    Raises:
      UserError: see `load_classifier`.
    """
    del changed
    classifier = load_classifier(source, seed=seed, trust=trust)
    scale = jax.jit(classifier.preprocessing.scale)
    blank = np.zeros((1, *classifier.input_size, 3), np.uint8)
    classifier.score(blank)
    scale(blank)
    regions = make_grad_cam(classifier) if classifier.model else None
    pixels = make_saliency(classifier) if classifier.model and regions is None else None
    return Network(classifier, scale, regions or pixels, regions is not None)


def describe(classifier: Classifier) -> None:
    """Draws the list of the classes."""
    names = classifier.class_names
    shown = ", ".join(names[:12]) + (" and others" if len(names) > 12 else "")
    st.markdown(
        f"A small neural network, trained to distinguish {wording.count(len(names))} classes: {_plain(shown)}. It "
        "cannot recognise anything else."
    )
    if classifier.seed == seeds.ENSEMBLE:
        of = f"those of {wording.count(len(classifier.members))} networks, " if classifier.model else ""
        st.caption(
            f"The probabilities are the mean of {of or 'several networks: '}the ensemble of all seeds of this run."
        )
    elif classifier.seed is not None:
        st.caption(f"This run has several networks. The one on this page: {seeds.describe(classifier.seed)}.")


def show_predictions(network: Network, fitted: Calibration | None) -> None:
    """Draws the inputs for pictures, the prediction for each picture, and the options below.

    Args:
      network: the network.
      fitted: its calibration; None if it has not been fitted.
    """
    take_uploads(network.classifier)
    names, about = pictures.samples(network.classifier.class_names)
    chosen = st.pills("Or try some of these", names, selection_mode="multi", key="samples", help=about)
    answers = st.container()
    uploaded = st.session_state.get("pictures", [])
    if uploaded and st.button("Remove the pictures", type="tertiary", icon=":material/delete:"):
        st.session_state["pictures"] = []
        st.rerun()
    mapped = False
    if network.explain:
        label, help_, _ = _MAPS[network.regions]
        mapped = st.toggle(label, key="saliency", help=help_)
    with st.expander("Pictures that are not square"):
        how = st.radio(
            "The network takes square pictures", list(_FITS), format_func=_FITS.get, horizontal=True, key="fit"
        )
    describe(network.classifier)
    st.caption("A picture is kept in the memory of this server until you leave. Nothing is saved.")
    with answers:
        for picture in [*uploaded, *load_samples(network.classifier, chosen)]:
            if isinstance(picture, UserError):
                st.warning(_plain(str(picture)), icon=":material/hide_image:")
            else:
                show_card(network, picture, fitted, how, mapped)


def take_uploads(classifier: Classifier) -> None:
    """Draws the upload field, and moves what was uploaded to the pictures of this visitor, the newest first.

    Of a file, `Picture` keeps what the page needs; the file itself is dropped at once, which bounds the memory per
    visitor.
    """
    state = st.session_state
    if state.setdefault("input_size", classifier.input_size) != classifier.input_size:  # another network was chosen
        state.update(input_size=classifier.input_size, pictures=[])
        st.info("This network takes pictures of another size: upload yours again.")
    number = state.setdefault("uploads", 0)
    uploads = st.file_uploader(
        f"Your pictures, up to {MAX_PICTURES} at once",
        accept_multiple_files=True,
        max_upload_size=pictures.MAX_BYTES >> 20,
        key=f"uploads-{number}",
    )
    if notice := state.pop("notice", ""):
        st.warning(notice)
    if not uploads:
        return
    read = []
    for file in uploads[:MAX_PICTURES]:
        read.append(
            pictures.read(file.name, lambda file=file: pictures.decode_upload(file.name, file.getvalue()), classifier)
        )
    state["pictures"] = (read + state.get("pictures", []))[:MAX_PICTURES]
    if len(uploads) > MAX_PICTURES:
        state["notice"] = f"These are {len(uploads)} pictures; only the first {MAX_PICTURES} are classified."
    _forget(uploads)
    state["uploads"] = number + 1  # a new, empty field
    st.rerun()


def _forget(uploads: list[Any]) -> None:
    """Removes files from Streamlit's memory, where they would stay until the visitor leaves."""
    context = get_script_run_ctx()
    remove = getattr(context and context.uploaded_file_mgr, "remove_file", None)
    if context and remove:  # managers other than Streamlit's own may not have it
        for file in uploads:
            remove(session_id=context.session_id, file_id=file.file_id)
    uploads.clear()
    runtime.return_memory()


def load_samples(classifier: Classifier, names: list[str]) -> list[Picture | UserError]:
    """Returns the samples, reading only those that are new since the last run of the page."""
    known = st.session_state.get("loaded", {})
    # Samples that are no longer chosen are dropped.
    kept = st.session_state["loaded"] = {}
    for name in names:
        key = (name, classifier.input_size)
        kept[key] = known[key] if key in known else pictures.read(name, lambda: pictures.load_sample(name), classifier)  # noqa: B023
    return list(kept.values())


def show_card(network: Network, picture: Picture, fitted: Calibration | None, fit: str, mapped: bool) -> None:
    """Draws the prediction for a picture; at once, and again with the map when it has been computed.

    Args:
      network: the network.
      picture: the picture to classify.
      fitted: calibrates the probabilities; None if it has not been fitted.
      fit: one of `cnn_jax.data.images.FITS`.
      mapped: whether to show the map of what the prediction depends on.
    """
    place = st.empty()
    key = f"{fit} {network.classifier.source}"
    if mapped and network.explain and key not in picture.maps:
        place.html(classify(network, picture, fitted, fit, _WAITING))
        with st.spinner("Computing what mattered; the first time takes a few seconds …"):
            picture.maps[key] = np.asarray(network.explain(picture.pixels[fit]))[0]
    place.html(classify(network, picture, fitted, fit, picture.maps[key] if mapped else None))


_WAITING = np.zeros((1, 1))  # in place of a map that is being computed


def classify(
    network: Network, picture: Picture, fitted: Calibration | None, fit: str, strength: np.ndarray | None
) -> str:
    """Returns the HTML card with the prediction for a picture.

    Args:
      network: the network.
      picture: the picture to classify.
      fitted: calibrates the probabilities; None if it has not been fitted.
      fit: one of `cnn_jax.data.images.FITS`.
      strength: the map to show, or `_WAITING`; None for none.
    """
    classifier, pixels = network.classifier, picture.pixels[fit]
    start = time.perf_counter()
    log_probabilities = classifier.score(pixels)
    milliseconds = 1000 * (time.perf_counter() - start)
    probabilities = np.exp(fitted(log_probabilities) if fitted else log_probabilities)[0]
    scaled = np.asarray(network.scale(pixels))[0]
    height, width = scaled.shape[:2]
    shown = [
        (picture.thumbnail, picture.name, False),
        (cards.data_uri(_to_bytes(scaled)), f"What the network sees: {width} x {height} pixels", True),
    ]
    if strength is _WAITING:
        shown.append((cards.data_uri(overlay(scaled, np.zeros(scaled.shape[:2]))), "Computing what mattered …", True))
    elif strength is not None:
        shown.append((cards.data_uri(overlay(scaled, strength)), _MAPS[network.regions][2], True))
    order = np.argsort(-probabilities, kind="stable")[:BARS]
    return cards.card(
        shown,
        wording.judge(probabilities, classifier.class_names, fitted),
        [(classifier.class_names[i], float(probabilities[i])) for i in order],
        f"Inference took {milliseconds:.1f} ms." + (f" Confidences {fitted.about}." if fitted else ""),
    )


def _to_bytes(scaled: np.ndarray) -> np.ndarray:
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _plain(text: str) -> str:
    """Escapes Markdown in the names of files and classes."""
    return re.sub(r"([\\`*_{}\[\]()<>#+.!|~$:-])", r"\\\1", text)


def _keep_uploads_in_memory() -> None:
    """Raises the size above which the server's form parser writes an upload to a temporary file."""
    MultiPartParser.spool_max_size = 2 * pictures.MAX_BYTES


if __name__ == "__main__":
    main()
