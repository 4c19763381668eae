"""The page in a real browser, with the real server and a real file."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("streamlit", reason="the page needs streamlit: pip install 'cnn_jax[app]'")
pytest.importorskip("playwright", reason="needs playwright: pip install 'cnn_jax[dev]'")

from playwright.sync_api import sync_playwright

from cnn_jax.data import digits
from cnn_jax.inference import load_classifier

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60_000  # milliseconds: the server imports JAX and compiles, on whatever machine this is


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """The address of the page about the run `trained`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "cnn_jax.page", f"--port={port}", f"--workdir={trained}"]
    with log.open("w") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    assert "Traceback" not in log.read_text() and "Network URL" not in log.read_text()


def wait_for(address, process, log):
    for _ in range(PATIENCE // 200):
        try:
            return urllib.request.urlopen(address).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "telephone"])
def page(browser, server, request):
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(server)
    page.get_by_text("Or try some of these").wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.fixture
def photograph(tmp_path):
    """A handwritten digit, as a file."""
    source, _ = digits.load()
    path = tmp_path / "my digit.png"
    Image.fromarray(source.images(np.array([5]))[0]).resize((90, 90)).save(path)
    return path


def test_a_visitor_uploads_a_file_and_gets_a_prediction(page, photograph, trained, tmp_path):
    (tmp_path / "words.jpg").write_text("These are words.")
    page.locator("input[type=file]").set_input_files([photograph, tmp_path / "words.jpg"])
    card = page.locator(".cnn-card")
    card.wait_for()
    probabilities = load_classifier(trained)([photograph])[0]
    assert card.locator(".first .name").inner_text() == str(probabilities.argmax())
    assert card.locator("figcaption").all_inner_texts()[0] == "my digit.png"
    page.get_by_text("words.jpg: not an image").wait_for()
    if page.viewport_size["width"] < 500:  # the answer is seen without scrolling
        box = card.locator("h3").bounding_box()
        assert box["y"] + box["height"] < page.viewport_size["height"] / 2
    for image in card.locator("img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")

    page.get_by_text("Show which regions mattered").click()
    card.get_by_text("Which regions mattered").wait_for()
    assert card.locator("img").count() == 3
    page.get_by_role("tab", name="Evaluation").click()
    page.get_by_text("python -m cnn_jax.evaluate").wait_for()
    page.get_by_alt_text("Loss and accuracy over the epochs").wait_for()
    page.get_by_role("tab", name="Try it").click()
    card.wait_for()


def test_a_file_that_is_too_large_is_refused_with_the_reason(page):
    file = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(21 * 2**20)}
    page.locator("input[type=file]").set_input_files([file])
    reason = page.get_by_text("File must be 20.0MB or smaller.")
    reason.wait_for()
    assert reason.bounding_box()["width"] > 100  # for eyes, not only for screen readers


def test_the_second_prediction_takes_milliseconds(page, photograph):
    page.get_by_role("button", name="Temple").click()
    page.locator(".cnn-card").wait_for()
    page.locator("input[type=file]").set_input_files(photograph)
    page.locator(".cnn-card").nth(1).wait_for()
    for note in page.locator(".cnn-card .note").all_inner_texts():
        # The network was compiled before the page asked for pictures: compiling takes most of a second.
        assert float(re.match(r"Inference took ([\d.]+) ms\.", note)[1]) < 200
