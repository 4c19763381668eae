"""The page: pictures in, answers out.

streamlit run cnn_jax/app.py -- --workdir=runs/batchnorm

Uploads stay in memory and go when the visitor does; nothing is written to disk.
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

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.evaluation import scores
from cnn_jax.inference import Classifier, load_classifier
from cnn_jax.inference.saliency import make_saliency, overlay
from cnn_jax.page import cards, pictures, wording
from cnn_jax.page.evaluation import read_temperature, show_evaluation
from cnn_jax.page.pictures import Picture
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER

MAX_PICTURES = 12  # at once; each takes a screen
BARS = 5

_FITS = {"crop": "Cut out the middle", "pad": "Add black bars", "stretch": "Squeeze"}


@dataclasses.dataclass(frozen=True)
class Network:
    """What the page keeps of a run, for all visitors.

    Attributes:
      classifier: compiled for one image at a time.
      see: compiled: uint8 `[1, height, width, 3]` to what the network sees, in [0, 1].
      saliency: see `cnn_jax.inference.saliency`; it is compiled when it is first asked for.
    """

    classifier: Classifier
    see: Callable[[np.ndarray], Any]
    saliency: Callable[[np.ndarray], Any]


def main() -> None:
    """Draws the page; streamlit calls it anew whenever something is clicked."""
    st.set_page_config("What is in the picture?", page_icon="🔎", layout="centered")
    _keep_uploads_in_memory()
    st.html(cards.STYLE)
    st.title("What is in the picture?", anchor=False)
    try:
        workdir = choose_run(parse_workdir(sys.argv[1:]))
        network = load_network(str(workdir), (workdir / CHECKPOINT_FOLDER).stat().st_mtime_ns)
    except UserError as error:
        say_how_to_make_one(str(error))
        return
    describe(network.classifier)
    # Drawn when it is looked at: figures take seconds, answers milliseconds.
    answers, evaluation = st.tabs(["Try it", "Evaluation"], key="tab", on_change="rerun")
    with answers:
        show_answers(network, read_temperature(workdir, network.classifier.step))
    with evaluation:
        if evaluation.open:
            show_evaluation(workdir, network.classifier.step)


def parse_workdir(arguments: list[str]) -> Path:
    """Returns what stands behind `--workdir`.

    Raises:
      UserError: nothing, or something else.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--workdir", default="")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}.") from None
    if rest:
        raise UserError(f"{rest[0]} is not known here: behind the -- stands --workdir=... and nothing else.")
    if not known.workdir:
        raise UserError("")
    return Path(known.workdir).expanduser().resolve()


def say_how_to_make_one(reason: str) -> None:
    """Explains what the page needs, to whoever started it without.

    Args:
      reason: what is wrong; empty where nothing was given.
    """
    if reason:
        st.warning(_plain(reason))
    st.markdown(
        "This page shows pictures to a trained network and tells what it sees in them. It needs such a network. This "
        "trains one, on handwritten digits, in a minute or two, without a download:"
    )
    st.code("python -m cnn_jax.main --config=configs/quickstart.py --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.markdown("And this starts the page with it, or with any other run:")
    st.code("streamlit run cnn_jax/app.py -- --workdir=runs/quickstart", "bash", wrap_lines=True)
    st.caption("Several runs in one folder can be compared: the page lets you choose among them.")


def choose_run(workdir: Path) -> Path:
    """Returns the run to ask, and draws a picker where others lie beside it, or in it.

    Raises:
      UserError: there is none.
    """
    if not workdir.is_dir():
        raise UserError(f"There is no folder {workdir}.")
    folder = workdir.parent if is_run(workdir) else workdir
    try:
        runs = sorted(path for path in folder.iterdir() if is_run(path))
    except OSError:  # a parent that may not be listed
        runs = [workdir] if is_run(workdir) else []
    if not runs:
        raise UserError(f"{workdir} holds no trained network: there is no folder “checkpoints” in it.")
    if len(runs) == 1:
        return runs[0]
    start = runs.index(workdir) if workdir in runs else 0
    return st.selectbox("Network", runs, index=start, format_func=lambda path: path.name)


def is_run(path: Path) -> bool:
    """Whether a training run saved something there."""
    try:
        return (path / CHECKPOINT_FOLDER).is_dir()
    except OSError:  # no right to look
        return False


@st.cache_resource(max_entries=4, show_spinner="Loading the network …")
def load_network(workdir: str, changed: int) -> Network:
    """Loads and compiles a run's best network, so that visitors wait for neither.

    Args:
      workdir: the run.
      changed: when its checkpoints last did: a run that goes on is loaded anew.

    Raises:
      UserError: see `load_classifier`.
    """
    del changed
    classifier = load_classifier(workdir)
    see = jax.jit(classifier.preprocessing.scale)
    blank = np.zeros((1, *classifier.input_size, 3), np.uint8)
    classifier.score(blank)
    see(blank)
    return Network(classifier, see, make_saliency(classifier))


def describe(classifier: Classifier) -> None:
    """Says what the network knows."""
    names = classifier.class_names
    shown = ", ".join(names[:12]) + (" and others" if len(names) > 12 else "")
    st.markdown(
        f"A small neural network, trained by examples to tell {wording.count(len(names))} classes apart: "
        f"{_plain(shown)}. It knows nothing else."
    )


def show_answers(network: Network, temperature: float | None) -> None:
    """Asks for pictures and answers each.

    Args:
      network: to ask.
      temperature: what calibrates it; None where it was not measured.
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
        help="Orange where the smallest change would change the answer most: the gradient of the first class's "
        "log-probability. It shows what the answer hangs on, not whether it is right.",
    )
    with st.expander("Pictures that are not square"):
        how = st.radio("The network sees squares", list(_FITS), format_func=_FITS.get, horizontal=True, key="fit")
    if len(uploads) > MAX_PICTURES:
        st.warning(f"These are {len(uploads)} pictures: the first {MAX_PICTURES} are answered.")
    sources = [
        (file.file_id, file.name, lambda file=file: pictures.decode_upload(file.name, file.getvalue()))
        for file in uploads[:MAX_PICTURES]
    ]
    sources += [(name, name, lambda name=name: pictures.load_sample(name)) for name in chosen]
    for picture in read_pictures(network.classifier, sources, how):
        if isinstance(picture, UserError):
            st.warning(_plain(str(picture)), icon=":material/hide_image:")
        else:
            st.html(answer(network, picture, temperature, mattered))
    if not sources:
        st.caption("What you upload stays in this server's memory until you leave. Nothing is saved.")


def read_pictures(
    classifier: Classifier, sources: list[tuple[str, str, Callable[[], Image.Image]]], fit: str
) -> list[Picture | UserError]:
    """Reads what was not read yet: a click elsewhere on the page decodes nothing again.

    Args:
      classifier: whose size the pictures get.
      sources: of each its identity, its name, and a function that decodes it.
      fit: see `cnn_jax.data.images.fit`.
    """
    known = st.session_state.get("pictures", {})
    # What is no longer on the page is forgotten.
    kept = st.session_state["pictures"] = {}
    for identity, name, decode in sources:
        key = (identity, classifier.input_size, fit)
        kept[key] = known[key] if key in known else pictures.read(name, decode, classifier, fit)
    return list(kept.values())


def answer(network: Network, picture: Picture, temperature: float | None, mattered: bool) -> str:
    """Returns the card of a picture.

    Args:
      network: to ask.
      picture: what about.
      temperature: what calibrates it; None where it was not measured.
      mattered: whether to show which pixels did.
    """
    classifier, pixels = network.classifier, picture.pixels
    start = time.perf_counter()
    log_probabilities = classifier.score(pixels)
    milliseconds = 1000 * (time.perf_counter() - start)
    probabilities = np.exp(scores.calibrate(log_probabilities, temperature or 1.0))[0]
    seen = np.asarray(network.see(pixels))[0]
    height, width = seen.shape[:2]
    views = [
        (picture.thumbnail, picture.name, False),
        (cards.address(_to_bytes(seen)), f"What the network sees: {width} x {height} pixels", True),
    ]
    if mattered:
        strength = np.asarray(network.saliency(pixels))[0]
        views.append((cards.address(overlay(seen, strength)), "Which pixels mattered: the orange ones", True))
    order = np.argsort(-probabilities, kind="stable")[:BARS]
    return cards.card(
        views,
        wording.judge(probabilities, classifier.class_names, temperature is not None),
        [(classifier.class_names[i], float(probabilities[i])) for i in order],
        f"Answered in {milliseconds:.1f} ms.",
    )


def _to_bytes(seen: np.ndarray) -> np.ndarray:
    return np.round(np.clip(seen, 0, 1) * 255).astype(np.uint8)


def _plain(text: str) -> str:
    """Keeps names of files and classes from being read as markup."""
    return re.sub(r"([\\`*_{}\[\]()<>#+.!|~$:-])", r"\\\1", text)


def _keep_uploads_in_memory() -> None:
    """Raises the size from which the server's form parser puts an upload into a temporary file."""
    MultiPartParser.spool_max_size = 2 * pictures.MAX_BYTES


if __name__ == "__main__":
    main()
