"""The page in `streamlit.testing`: good pictures, bad files, and no network."""

import io
import json
import re
import shutil
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("streamlit", reason="the page needs streamlit: pip install 'cnn_jax[app]'")

import streamlit as st
from starlette.formparsers import MultiPartParser
from streamlit.testing.v1 import AppTest

from cnn_jax.inference import load_classifier
from cnn_jax.page import pictures

TIMEOUT = 60


@pytest.fixture
def page(monkeypatch):
    """Opens the page with these arguments after `--`."""

    def open_page(*arguments: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", *map(str, arguments)])
        opened = AppTest.from_file(str(ROOT / "cnn_jax" / "app.py"), default_timeout=TIMEOUT).run()
        assert not opened.exception
        return opened

    return open_page


@pytest.fixture
def runs(tmp_path, trained):
    """A folder with copies of a trained run."""

    def make(*names: str):
        for name in names:
            shutil.copytree(trained, tmp_path / "runs" / name)
        return tmp_path / "runs"

    return make


def encoded(size=(40, 30), kind="PNG") -> bytes:
    pixels = np.random.RandomState(0).randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG file with a size in its header and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def card_texts(opened: AppTest) -> list[str]:
    return [html.value for html in opened.get("html") if "<article" in html.value]


def warnings_of(opened: AppTest) -> list[str]:
    return [warning.value.replace("\\", "") for warning in opened.warning]


def show(opened: AppTest, *files: tuple[str, bytes]) -> AppTest:
    opened.file_uploader[0].set_value([(name, content, "image/png") for name, content in files])
    opened.run()
    assert not opened.exception
    return opened


def test_without_a_workdir_it_explains_its_usage(page):
    opened = page()
    assert not opened.warning
    commands = [code.value for code in opened.code]
    assert commands[0].startswith("python -m cnn_jax.main --config=quickstart --workdir=")
    assert commands[1].startswith("python -m cnn_jax.page --workdir=")
    assert not opened.file_uploader


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workdir=/nowhere/at_all"], "There is no folder /nowhere/at_all."),
        (["--workdir"], "expected one argument"),
        (["--workdri=x"], "Unexpected argument --workdri=x; usage: streamlit run cnn_jax/app.py -- --workdir=WORKDIR"),
        (["--workdir="], None),
        (["--workdir=x", "--model=y"], "not both"),
        (["--model=/nowhere/at_all"], "There is no file /nowhere/at_all."),
        (["--workdir=x", "--seed=all"], "--seed is 'all'; it must be the index of a seed"),
    ],
)
def test_wrong_arguments(page, arguments, reason):
    opened = page(*arguments)
    assert [reason in warning for warning in warnings_of(opened)] == [True] * (reason is not None)
    assert len(opened.code) == 2


def test_a_folder_without_a_network(page, tmp_path):
    assert "holds no trained network" in warnings_of(page(f"--workdir={tmp_path}"))[0]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "There is no checkpoint in" in warnings_of(page(f"--workdir={tmp_path / 'run'}"))[0]


def test_the_prediction_is_the_classifiers(page, trained):
    opened = show(page(f"--workdir={trained}"), ("noise.png", encoded()))
    (card,) = card_texts(opened)
    probabilities = load_classifier(trained)([Image.open(io.BytesIO(encoded()))])[0]
    names = re.findall(r'class="name">(\w+)<', card)
    assert names == [str(i) for i in np.argsort(-probabilities, kind="stable")[:5]]
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", card)]
    np.testing.assert_allclose(widths, np.sort(probabilities)[::-1][:5] * 100, atol=0.051)
    assert "noise.png" in card
    assert "What the network sees: 8 x 8 pixels" in card
    assert card.count("<img") == 2
    assert "has not been measured" in card


def test_samples(page, trained):
    opened = page(f"--workdir={trained}")
    opened.pills(key="samples").set_value(["Temple", "Digit 7"]).run()
    assert not opened.exception
    temple, digit = card_texts(opened)
    assert "Temple" in temple
    assert "Digit 7" in digit
    opened.pills(key="samples").set_value([]).run()
    assert not card_texts(opened)


def test_every_sample_is_a_picture():
    for name in pictures.SAMPLES:
        assert pictures.load_sample(name).mode == "RGB"


def test_which_pixels_mattered(page, trained):
    opened = show(page(f"--workdir={trained}"), ("noise.png", encoded()))
    opened.toggle(key="saliency").set_value(True).run()
    assert not opened.exception
    (card,) = card_texts(opened)
    assert card.count("<img") == 3
    assert "Which regions mattered" in card


def test_an_exported_file_is_served(page, exported_model):
    opened = show(page(f"--model={exported_model}"), ("noise.png", encoded()))
    (card,) = card_texts(opened)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", card)]
    probabilities = load_classifier(exported_model)([Image.open(io.BytesIO(encoded()))])[0]
    np.testing.assert_allclose(widths, np.sort(probabilities)[::-1][:5] * 100, atol=0.051)
    assert not opened.toggle and not opened.tabs  # a program has no gradients, and no run to evaluate
    opened = page(f"--model={exported_model}", "--seed=1")
    assert "holds seed 0" in warnings_of(opened)[0]


def test_pictures_that_are_not_square(page, trained):
    opened = show(page(f"--workdir={trained}"), ("line.png", encoded((5000, 1))), ("dot.png", encoded((1, 1))))
    for how in ("crop", "pad", "stretch"):
        opened.radio(key="fit").set_value(how).run()
        assert not opened.exception
        assert len(card_texts(opened)) == 2


HOSTILE = {
    "renamed text.jpg": b"These are words.",
    "cut.jpg": encoded((300, 200), "JPEG")[:2000],
    "cut in the header.png": encoded()[:20],
    "nothing.png": b"",
    "photo.HEIC": b"ftypheic",
    "bomb.png": png_of(30_000, 30_000),
    "claims.png": png_of(8000, 8000),
    "page.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "large.png": b"\x89PNG" + bytes(pictures.MAX_BYTES),
    "*odd* [name](x) <b>.png": b"no image",
}


def test_bad_files_are_named_and_good_ones_classified(page, trained):
    files = list(HOSTILE.items())
    opened = show(page(f"--workdir={trained}"), *files[:4], ("good.png", encoded()), *files[4:])
    warnings = warnings_of(opened)
    assert [warning.partition(": ")[0] for warning in warnings] == list(HOSTILE)
    said = dict(warning.partition(": ")[::2] for warning in warnings)
    assert "not an image" in said["renamed text.jpg"]
    assert "damaged" in said["cut.jpg"]
    assert "empty" in said["nothing.png"]
    assert "pixels" in said["bomb.png"]
    assert "20 MB" in said["large.png"]
    assert len(card_texts(opened)) == 1
    assert "Most Compatible" in said["photo.HEIC"]
    # The markup in a name is shown, not obeyed.
    assert r"\*odd\* \[name\]\(x\) \<b\>\.png" in opened.warning[-1].value
    opened.button[0].click().run()  # removes them
    assert not opened.warning and not card_texts(opened)
    assert len(card_texts(show(opened, ("good.png", encoded())))) == 1


def test_cut_anywhere(page, trained):
    opened = page(f"--workdir={trained}")
    whole = encoded((64, 48), "JPEG")
    cuts = [("cut.jpg", whole[:length]) for length in np.linspace(0, len(whole) - 1, 12).astype(int)]
    opened = show(opened, *cuts)
    assert len(opened.warning) + len(card_texts(opened)) == len(cuts)
    assert opened.warning


def test_too_many_pictures(page, trained):
    opened = show(page(f"--workdir={trained}"), *[(f"{i}.png", encoded()) for i in range(14)])
    assert warnings_of(opened) == ["These are 14 pictures; only the first 12 are classified."]
    assert len(card_texts(opened)) == 12
    opened = show(opened, ("newest.png", encoded()))
    assert len(card_texts(opened)) == 12 and "newest.png" in card_texts(opened)[0]
    assert not opened.warning


def test_of_an_upload_only_what_is_shown_is_kept(page, trained):
    opened = show(page(f"--workdir={trained}"), ("large.png", encoded((2000, 1500))))
    (picture,) = opened.session_state["pictures"]
    assert not opened.file_uploader[0].value  # a new, empty field
    assert {fit: pixels.shape for fit, pixels in picture.pixels.items()} == dict.fromkeys(
        ("crop", "stretch", "pad"), (1, 32, 32, 3)
    )
    assert len(picture.thumbnail) < 400_000
    expected = load_classifier(trained).fit([Image.open(io.BytesIO(encoded((2000, 1500))))], "pad")
    np.testing.assert_array_equal(picture.pixels["pad"], expected)


def test_the_selection_box(page, runs):
    folder = runs("first", "second")
    (folder / "not a run").mkdir()
    assert not page(f"--workdir={folder / 'second'}").selectbox  # a visitor sees no other runs
    opened = page(f"--workdir={folder}")
    assert opened.selectbox[0].options == ["first", "second"]
    assert opened.selectbox[0].value == folder / "first"
    show(opened, ("noise.png", encoded()))
    opened.selectbox[0].set_value(folder / "second").run()
    assert not opened.exception
    assert len(card_texts(opened)) == 1


def test_a_folder_of_runs_is_a_workdir_too(page, runs):
    assert page(f"--workdir={runs('a', 'b')}").selectbox[0].options == ["a", "b"]
    assert not page(f"--workdir={runs('c').parent}").file_uploader


def test_a_damaged_run_beside_a_good_one(page, runs):
    folder = runs("bad", "good")
    for file in (folder / "bad" / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(b"damage")
    opened = page(f"--workdir={folder}")
    assert "cannot be read" in warnings_of(opened)[0]
    opened.selectbox[0].set_value(folder / "good").run()
    assert not opened.exception
    assert opened.file_uploader


def evaluation(**changes) -> str:
    matrix = np.eye(10, dtype=int).tolist()
    scores = {"accuracy": 0.9, "loss": 0.3, "precision": 0.91, "recall": 0.92, "f1": 0.93}
    about = {"split": "test", "step": 25, "examples": 359, "class_names": list("0123456789"), "temperature": 2.0}
    return json.dumps(about | scores | {"confusion_matrix": matrix} | changes)


def evaluation_tab(page, workdir) -> AppTest:
    opened = page(f"--workdir={workdir}")
    opened.session_state["tab"] = "Evaluation"
    opened.run()
    assert not opened.exception
    return opened


def test_the_command_for_an_evaluation_is_shown(page, runs):
    opened = evaluation_tab(page, runs("run one") / "run one")
    assert opened.code[0].value.startswith("python -m cnn_jax.evaluate --workdir='/")
    assert len(opened.image) == 1


def test_evaluation_is_shown_and_calibrates(page, runs):
    workdir = runs("run") / "run"
    classifier = load_classifier(workdir)
    (workdir / "evaluation.json").write_text(evaluation(step=classifier.step))
    opened = evaluation_tab(page, workdir)
    assert [metric.value for metric in opened.metric] == ["90.0%", "91.0%", "92.0%", "93.0%"]
    assert len(opened.image) == 2
    assert not opened.code
    (card,) = card_texts(show(opened, ("noise.png", encoded())))
    scores = classifier.score(classifier.fit([Image.open(io.BytesIO(encoded()))]))[0] / 2
    width = 100 * np.exp(scores.max()) / np.exp(scores).sum()
    assert f"width:{width:.1f}%" in card
    assert "of 100 predictions with this confidence are right" in card
    assert "calibrated with temperature 2.000" in card
    (workdir / "evaluation.json").write_text(evaluation(step=classifier.step, threshold=0.999))
    assert "does not look like any of the ten classes" in card_texts(opened.run())[0]


def test_an_evaluation_of_another_step_calibrates_nothing(page, runs):
    workdir = runs("run") / "run"
    (workdir / "evaluation.json").write_text(evaluation(step=12345))
    opened = evaluation_tab(page, workdir)
    assert any("This evaluation is of step 12,345" in markdown.value for markdown in opened.markdown)
    assert opened.code
    assert opened.metric
    assert "has not been measured" in card_texts(show(opened, ("noise.png", encoded())))[0]


def test_an_ensemble_is_named_and_calibrated_by_its_own_evaluation(page, tmp_path):
    workdir = shutil.copytree(ROOT / "tests" / "fixtures" / "stopped", tmp_path / "run")  # of two seeds
    opened = show(page(f"--workdir={workdir}", "--seed=ensemble"), ("noise.png", encoded()))
    assert "The probabilities are the mean of those of two networks" in " ".join(
        caption.value for caption in opened.caption
    )
    probabilities = load_classifier(workdir, seed="ensemble")([Image.open(io.BytesIO(encoded()))])[0]
    (card,) = card_texts(opened)
    assert f"width:{100 * probabilities.max():.1f}%" in card and "has not been measured" in card
    opened.toggle(key="saliency").set_value(True).run()
    assert not opened.exception and card_texts(opened)[0].count("<img") == 3

    for seed, calibrates in ((0, False), ("ensemble", True)):
        (workdir / "evaluation.json").write_text(evaluation(step=13, seed=seed))
        opened.session_state["tab"] = "Evaluation"
        opened.run()
        assert ("has not been measured" not in card_texts(opened)[0]) == calibrates
        commands = [code.value for code in opened.code]
        assert commands == [f"python -m cnn_jax.evaluate --workdir={workdir} --seed=ensemble"] * (not calibrates)
        assert any("another choice of seeds" in markdown.value for markdown in opened.markdown) == (not calibrates)
    assert any("step 13, ensemble of all seeds." in caption.value for caption in opened.caption)


def test_the_first_of_several_seeds_is_named(page):
    opened = page(f"--workdir={ROOT / 'tests' / 'fixtures' / 'stopped'}")
    assert any("seed 0 (0 is the first)" in caption.value for caption in opened.caption)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "nothing",
        evaluation(temperature=0),
        evaluation(temperature="x"),
        evaluation(threshold=2),
        evaluation(confusion_matrix=1),
    ],
)
def test_a_damaged_evaluation_is_reported(page, runs, content):
    workdir = runs("run") / "run"
    (workdir / "evaluation.json").write_text(content)
    opened = evaluation_tab(page, workdir)
    assert any("is damaged" in markdown.value for markdown in opened.markdown)
    assert opened.code
    assert card_texts(show(opened, ("noise.png", encoded())))


def test_a_run_without_records(page, runs):
    workdir = runs("run") / "run"
    (workdir / "metrics.jsonl").unlink()
    assert not evaluation_tab(page, workdir).image


def test_nothing_is_written(page, runs):
    folder = runs("run")

    def files():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = files()
    show(evaluation_tab(page, folder / "run"), ("noise.png", encoded()))
    assert files() == before
    # What the server would put into a temporary file never arrives.
    assert MultiPartParser.spool_max_size > pictures.MAX_BYTES


def test_a_second_prediction_is_twenty_times_as_fast_as_the_first(page, runs):
    st.cache_resource.clear()
    start = time.perf_counter()
    opened = show(page(f"--workdir={runs('run') / 'run'}"), ("first.png", encoded()))
    first = time.perf_counter() - start
    taken = re.search(r"Inference took ([\d.]+) ms", card_texts(show(opened, ("second.png", encoded((50, 50)))))[0])
    assert float(taken[1]) / 1000 < first / 20


def test_needs_no_trainer(command, trained):
    code = f"""
import sys
sys.argv = ["app.py", "--workdir={trained}"]
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("cnn_jax/app.py", default_timeout=60).run()
assert page.file_uploader
heavy = {{"optax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "tensorboardX", "cnn_jax.training"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = command("", code=code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "Give --workdir=DIR (a trained run) or --model=FILE"),
        (["--workdir=/nowhere"], "There is no folder /nowhere."),
        (["--model=/nowhere"], "There is no file /nowhere."),
        (["--workdir=/tmp", "--port=99999999"], "port"),
    ],
)
def test_the_command_refuses_in_one_line(command, arguments, says):
    done = command("page", *arguments)
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_page_is_for_this_computer_only():
    import tomllib

    settings = tomllib.loads((ROOT / "cnn_jax" / ".streamlit" / "config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["maxUploadSize"] << 20 == pictures.MAX_BYTES
