"""Web page that classifies uploaded pictures.

streamlit run cnn_jax/app.py -- --workdir=runs/batchnorm

Of a run with several seeds, --seed=INDEX|ensemble chooses the network.

Uploads are kept in memory until the visitor leaves; nothing is written to disk.
"""

from cnn_jax import runtime

runtime.prepare()  # before JAX is imported

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import streamlit as st
from PIL import Image
from starlette.formparsers import MultiPartParser

from cnn_jax import cli
from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.evaluation import scores
from cnn_jax.inference import Classifier, load_classifier, seeds
from cnn_jax.inference.saliency import make_saliency, overlay
from cnn_jax.page import cards, pictures, wording
from cnn_jax.page.evaluation import read_temperature, show_evaluation
from cnn_jax.page.pictures import Picture
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER

MAX_PICTURES = 12  # at once; each fills a screen
BARS = 5

_FITS = {"crop": "Crop to the centre", "pad": "Add black bars", "stretch": "Stretch"}


@dataclasses.dataclass(frozen=True)
class Network:
    """A loaded network, shared by all visitors.

    Attributes:
      classifier: compiled for one image at a time.
      scale: uint8 `[1, height, width, 3]` to the resized image in [0, 1], as the network takes it; compiled.
      saliency: see `cnn_jax.inference.saliency`; compiled on first use.
    """

    classifier: Classifier
    scale: Callable[[np.ndarray], Any]
    saliency: Callable[[np.ndarray], Any]


def main() -> None:
    """Draws the page; streamlit runs it again after every interaction."""
    st.set_page_config("What is in the picture?", page_icon="🔎", layout="centered")
    _keep_uploads_in_memory()
    st.html(cards.STYLE)
    st.title("What is in the picture?", anchor=False)
    try:
        given, seed = parse_arguments(sys.argv[1:])
        workdir = choose_run(given)
        network = load_network(str(workdir), seed, (workdir / CHECKPOINT_FOLDER).stat().st_mtime_ns)
    except UserError as error:
        explain_usage(str(error))
        return
    if network.classifier.notice:
        st.warning(network.classifier.notice)
    describe(network.classifier)
    # The evaluation is drawn only when its tab is open, because figures take seconds and predictions milliseconds.
    predictions, evaluation = st.tabs(["Try it", "Evaluation"], key="tab", on_change="rerun")
    with predictions:
        show_predictions(network, read_temperature(workdir, network.classifier))
    with evaluation:
        if evaluation.open:
            show_evaluation(workdir, network.classifier)


def parse_arguments(arguments: list[str]) -> tuple[Path, seeds.Seed | None]:
    """Returns the values of `--workdir` and `--seed`.

    Raises:
      UserError: no workdir is given (an empty message), the seed is mistyped, or another argument is given.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--seed")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}.") from None
    if rest:
        raise UserError(f"Unexpected argument {rest[0]}; usage: streamlit run cnn_jax/app.py -- --workdir=WORKDIR")
    if not known.workdir:
        raise UserError("")
    seed = None if known.seed is None else cli.parse_seed(known.seed)
    return Path(known.workdir).expanduser().resolve(), seed


def explain_usage(reason: str) -> None:
    """Draws instructions for starting the page with a trained network.

    Args:
      reason: why there is no network; empty if no workdir was given.
    """
    if reason:
        st.warning(_plain(reason))
    st.markdown(
        "This page classifies pictures with a trained network. To train one on handwritten digits, in one or two "
        "minutes and without a download:"
    )
    st.code("python -m cnn_jax.main --config=configs/quickstart.py --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.markdown("To start the page with this or any other run:")
    st.code("streamlit run cnn_jax/app.py -- --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.caption("If the folder holds several runs, the page lets you choose one.")


def choose_run(workdir: Path) -> Path:
    """Returns the run to use, and draws a selection box if there are several.

    Args:
      workdir: a run, whose folder may hold other runs, or a folder of runs.

    Raises:
      UserError: there is no run.
    """
    if not workdir.is_dir():
        raise UserError(f"There is no folder {workdir}.")
    folder = workdir.parent if is_run(workdir) else workdir
    try:
        runs = sorted(path for path in folder.iterdir() if is_run(path))
    except OSError:  # no permission to list the folder
        runs = [workdir] if is_run(workdir) else []
    if not runs:
        raise UserError(f"{workdir} holds no trained network: it has no folder “{CHECKPOINT_FOLDER}”.")
    if len(runs) == 1:
        return runs[0]
    start = runs.index(workdir) if workdir in runs else 0
    return st.selectbox("Network", runs, index=start, format_func=lambda path: path.name)


def is_run(path: Path) -> bool:
    """Returns whether a folder is the workdir of a run with checkpoints."""
    try:
        return (path / CHECKPOINT_FOLDER).is_dir()
    except OSError:  # no permission
        return False


@st.cache_resource(max_entries=4, show_spinner="Loading the network …")
def load_network(workdir: str, seed: seeds.Seed | None, changed: int) -> Network:
    """Loads and compiles the best network of a run, so that visitors do not wait for it.

    Args:
      workdir: the run.
      seed: see `load_classifier`.
      changed: modification time of its checkpoints; part of the cache key, so that later checkpoints are loaded.

    Raises:
      UserError: see `load_classifier`.
    """
    del changed
    classifier = load_classifier(workdir, seed=seed)
    scale = jax.jit(classifier.preprocessing.scale)
    blank = np.zeros((1, *classifier.input_size, 3), np.uint8)
    classifier.score(blank)
    scale(blank)
    return Network(classifier, scale, make_saliency(classifier))


def describe(classifier: Classifier) -> None:
    """Draws the list of the classes."""
    names = classifier.class_names
    shown = ", ".join(names[:12]) + (" and others" if len(names) > 12 else "")
    st.markdown(
        f"A small neural network, trained to distinguish {wording.count(len(names))} classes: {_plain(shown)}. It "
        "cannot recognise anything else."
    )
    if classifier.seed == seeds.ENSEMBLE:
        count = wording.count(len(classifier.members))
        st.caption(
            f"The probabilities are the mean of those of {count} networks, the ensemble of all seeds of this run."
        )
    elif classifier.seed is not None:
        st.caption(f"This run has several networks. The one on this page: {seeds.describe(classifier.seed)}.")


def show_predictions(network: Network, temperature: float | None) -> None:
    """Draws the inputs for pictures, and the prediction for each picture.

    Args:
      network: the network.
      temperature: calibrates its probabilities; None if it has not been fitted.
    """
    uploads = st.file_uploader(
        f"Your pictures, up to {MAX_PICTURES} at once",
        type=sorted(extension.removeprefix(".") for extension in images.EXTENSIONS),
        accept_multiple_files=True,
        max_upload_size=pictures.MAX_BYTES >> 20,
        key="uploads",
    )
    chosen = st.pills(
        "Or try some of these", pictures.SAMPLES, selection_mode="multi", key="samples", help=pictures.ABOUT_SAMPLES
    )
    mattered = st.toggle(
        "Show which pixels mattered",
        key="saliency",
        help="Orange where a small change of a pixel changes the prediction most: the gradient of the "
        "log-probability of the predicted class. It shows what the prediction depends on, not whether it is right.",
    )
    with st.expander("Pictures that are not square"):
        how = st.radio(
            "The network takes square pictures", list(_FITS), format_func=_FITS.get, horizontal=True, key="fit"
        )
    if len(uploads) > MAX_PICTURES:
        st.warning(f"These are {len(uploads)} pictures; only the first {MAX_PICTURES} are classified.")
    sources = [
        (file.file_id, file.name, lambda file=file: pictures.decode_upload(file.name, file.getvalue()))
        for file in uploads[:MAX_PICTURES]
    ]
    sources += [(name, name, lambda name=name: pictures.load_sample(name)) for name in chosen]
    for picture in read_pictures(network.classifier, sources, how):
        if isinstance(picture, UserError):
            st.warning(_plain(str(picture)), icon=":material/hide_image:")
        else:
            st.html(classify(network, picture, temperature, mattered))
    if not sources:
        st.caption("Uploads are kept in the memory of this server until you leave. Nothing is saved.")


def read_pictures(
    classifier: Classifier, sources: list[tuple[str, str, Callable[[], Image.Image]]], fit: str
) -> list[Picture | UserError]:
    """Returns the pictures, decoding only those that are new since the last run of the page.

    Args:
      classifier: the classifier, to whose input size the pictures are fitted.
      sources: identity, name and decoding function of each picture.
      fit: see `cnn_jax.data.images.fit`.
    """
    known = st.session_state.get("pictures", {})
    # Pictures that were removed from the page are dropped.
    kept = st.session_state["pictures"] = {}
    for identity, name, decode in sources:
        key = (identity, classifier.input_size, fit)
        kept[key] = known[key] if key in known else pictures.read(name, decode, classifier, fit)
    return list(kept.values())


def classify(network: Network, picture: Picture, temperature: float | None, saliency: bool) -> str:
    """Returns the HTML card with the prediction for a picture.

    Args:
      network: the network.
      picture: the picture to classify.
      temperature: calibrates the probabilities; None if it has not been fitted.
      saliency: whether to add the saliency map.
    """
    classifier, pixels = network.classifier, picture.pixels
    start = time.perf_counter()
    log_probabilities = classifier.score(pixels)
    milliseconds = 1000 * (time.perf_counter() - start)
    probabilities = np.exp(scores.calibrate(log_probabilities, temperature or 1.0))[0]
    scaled = np.asarray(network.scale(pixels))[0]
    height, width = scaled.shape[:2]
    shown = [
        (picture.thumbnail, picture.name, False),
        (cards.data_uri(_to_bytes(scaled)), f"What the network sees: {width} x {height} pixels", True),
    ]
    if saliency:
        strength = np.asarray(network.saliency(pixels))[0]
        shown.append((cards.data_uri(overlay(scaled, strength)), "Which pixels mattered: the orange ones", True))
    order = np.argsort(-probabilities, kind="stable")[:BARS]
    return cards.card(
        shown,
        wording.judge(probabilities, classifier.class_names, temperature is not None),
        [(classifier.class_names[i], float(probabilities[i])) for i in order],
        f"Inference took {milliseconds:.1f} ms.",
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
