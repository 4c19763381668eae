"""The command `python -m cnn_jax.predict` and the predictions of many images."""

import csv
import dataclasses
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.inference import batch, load_classifier


@pytest.fixture(scope="module")
def classifier(trained):
    return load_classifier(trained)


@pytest.fixture
def counting(classifier):
    """A classifier whose first probability is the mean of the pixels."""

    def log_probabilities(pixels):
        mean = np.asarray(pixels, np.float32).mean((1, 2, 3)) / 256 + 1e-3
        return np.log(np.stack([mean, 1 - mean], -1))

    return dataclasses.replace(classifier, class_names=("bright", "dark"), log_probabilities=log_probabilities)


def one_line(done, says):
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_table(classifier, trained, photographs, command):
    root = photographs("b.png", "a/2.jpg", "a/10.PNG", "a/.hidden.png", ".git/x.png", size=(60, 40))
    (root / "notes.txt").write_text("no image")
    done = command("predict", f"--workdir={trained}", str(root), "--top_k=2")
    assert (done.returncode, done.stderr) == (0, "")
    paths = [str(root / name) for name in ("a/10.PNG", "a/2.jpg", "b.png")]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == paths
    for line, probabilities in zip(lines, classifier(paths)):
        best = probabilities.argsort()[::-1][:2]
        shown = [f"{classifier.class_names[i]} {100 * probabilities[i]:.1f} %" for i in best]
        assert " ".join(line.split()[1:]) == " ".join(shown)
    assert len({len(line) for line in lines}) == 1 and "\x1b" not in done.stdout


def test_json_of_an_exported_model(classifier, exported_model, photographs, command):
    root = photographs("1.png", "2.png", size=(60, 40))
    paths = [str(root / "2.png"), str(root / "1.png")]
    options = ["--json", "--top_k=99", "--fit=pad", "--mirror"]
    done = command("predict", paths[0], f"--model={exported_model}", *options, paths[1])  # flags anywhere
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == paths
    for row, probabilities in zip(rows, classifier(paths, fit="pad", mirror=True)):
        assert [top["probability"] for top in row["top"]] == sorted(
            map(pytest.approx, probabilities), key=lambda p: -p.expected
        )
        assert {top["class"] for top in row["top"]} == set(classifier.class_names)


def test_csv_and_unreadable_files(exported_model, photographs, command):
    root = photographs("1.png", 'new\nline, "quoted".png')
    (root / "0.jpg").write_text("not an image")
    done = command("predict", f"--model={exported_model}", "--csv", str(root), str(root / "none.png"), "--top_k=1")
    assert done.returncode == 1
    heic = "HEIC, " * images.HAS_HEIC
    assert done.stderr.splitlines() == [
        f"Error: {root}/0.jpg: not an image that can be read (BMP, GIF, {heic}JPEG, PNG, PPM, TIFF or WebP). Replace "
        "or remove the file.",
        f"Error: {root}/none.png: no such file.",
    ]
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[0] == ["image", "class_1", "probability_1"]
    assert [row[0] for row in rows[1:]] == [f"{root}/1.png", f'{root}/new\nline, "quoted".png']
    assert all(0 < float(row[2]) <= 1 for row in rows[1:])


def test_standard_input(exported_model, photographs, command):
    path = photographs("1.png") / "1.png"
    with path.open("rb") as file:
        done = command("predict", f"--model={exported_model}", "-", str(path), stdin=file)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].split()[0] == "-" and lines[0].split()[1:] == lines[1].split()[1:]
    one_line(command("predict", f"--model={exported_model}", "-", stdin=subprocess.DEVNULL), "standard input: empty.")


def test_control_characters_in_names_are_escaped(exported_model, photographs, command):
    path = photographs("1.png") / "1.png"
    for name in (b"\xff.png", b"\x1b[31mred.png", b"a\nb.png", b":cat: [bold].png"):
        shutil.copy(path, os.path.join(os.fsencode(path.parent), name))
    path.unlink()
    done = command(
        "predict", f"--model={exported_model}", str(path.parent), env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split("/")[-1].split(".png")[0] for line in done.stdout.splitlines()]
    assert names == [r"\x1b[31mred", ":cat: [bold]", r"a\nb", r"\udcff"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["a.png"], "Give --workdir=DIR (a trained run) or --model=FILE (an exported one)"),
        (["--workdir=W", "--model=M", "a.png"], "not both"),
        (["--workdir=W"], "Name the images: files, folders, or -"),
        (
            ["--workdir=W", "https://example.org/a.png"],
            "https://example.org/a.png is a URL, and URLs are not supported",
        ),
        (["--workdir=W", "E"], "There is no image in E: the names of images end in .bmp"),
        (["--workdir=W", "-", "-"], "can be read once only"),
        (["--workdir=W", "a.png"], "There is no workdir W"),
        (["--workdir=W", "a.png", "--step=x"], "--step is 'x'; it must be best, latest, or the number"),
        (["--model=M", "a.png", "--step=3"], "an exported model has only one step"),
        (["--model=M", "a.png"], "There is no file M: write one with python -m cnn_jax.export --output=M ..."),
        (["--workdir=W", "a.png", "--top_k=0"], "--top_k=0"),
        (["--workdir=W", "a.png", "--fit=tile"], "<crop|stretch|pad>"),
        (["--workdir=W", "a.png", "--json", "--csv"], "Give --json or --csv, not both"),
        (["--workdir=W", "a.png", "--wrokdir=W"], "Did you mean: workdir"),
        (["--workdir=W", "a.png", "--config.seed=3"], "config.seed"),
    ],
)
def test_one_clear_line(tmp_path, arguments, says):
    (tmp_path / "E").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cnn_jax.predict", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    one_line(done, says)
    assert done.stdout == ""


def test_help_lists_every_flag(command):
    shown = command("predict", "--help").stdout
    for name in ("workdir", "model", "step", "top_k", "[no]json", "[no]csv", "fit", "[no]mirror"):
        assert f"  --{name}: " in shown


def test_a_closed_pipe_and_a_full_disk(exported_model, photographs, tmp_path):
    root = photographs(*(f"{i}.png" for i in range(300)), size=(32, 32))
    command = [sys.executable, "-m", "cnn_jax.predict", f"--model={exported_model}", str(root)]
    left = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    left.stdout.readline()
    left.stdout.close()
    assert left.stderr.read() == b"" and left.wait() == 141
    left.stderr.close()
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: The predictions cannot be written (No space left on device).\n",
    )


def test_the_bar_is_on_the_terminal_and_the_predictions_in_the_file(exported_model, photographs, tmp_path):
    root = photographs("1.png", "2.png")
    (root / "0.png").write_text("not an image")
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "cnn_jax.predict", f"--model={exported_model}", str(root)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "300"}
    with (tmp_path / "predictions").open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdin=end, stdout=file, stderr=end, env=environment)
    os.close(end)
    shown = b""
    while chunk := _read(terminal):
        shown += chunk
    os.close(terminal)
    assert process.wait() == 1
    assert b"3/3" in shown and b"Error: " in shown and b"0.png: not an image" in shown
    lines = (tmp_path / "predictions").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"{root}/1.png", f"{root}/2.png"]
    assert b"\x1b" not in (tmp_path / "predictions").read_bytes()


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so where all ends are closed
        return b""


def test_predictions_keep_the_order_and_decode_a_bounded_number_ahead(counting, tmp_path, monkeypatch):
    files = []
    for i in range(256):
        files.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (32, 32), (i, i, i)).save(files[-1])
    taken = 0

    def names():
        nonlocal taken
        for i in range(2000):
            taken += 1
            yield files[i % 256] if i % 100 else str(tmp_path / "none.png")

    for i, prediction in enumerate(batch.predict(counting, names())):
        assert taken <= i + batch.BATCH_SIZES[-1] + batch._AHEAD
        if i % 100:
            assert prediction.probabilities[0] == pytest.approx(i % 256 / 256 + 1e-3, abs=1e-5)
        else:
            assert prediction.probabilities is None and prediction.error.endswith("none.png: no such file.")
    assert i == 1999
    assert threading.active_count() < 50


def test_an_abandoned_iterator_ends_its_threads(counting, photographs):
    path = str(photographs("1.png") / "1.png")
    before = threading.active_count()
    predictions = batch.predict(counting, [path] * 1000)
    next(predictions)
    predictions.close()
    assert threading.active_count() == before


def test_nan_is_an_error(counting, photographs):
    broken = dataclasses.replace(
        counting, log_probabilities=lambda pixels: np.full((len(pixels), 2), np.nan, np.float32)
    )
    with pytest.raises(UserError, match=r"are not finite\. Choose another --step"):
        list(batch.predict(broken, [str(photographs("1.png") / "1.png")]))


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", folder))
        yield folder, [], []

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        images.find([str(tmp_path)])


def test_no_cell_is_a_formula(command):
    names = ("=1+1.png", "@x.png", "+x.png", "-x.png", "\tx.png", "x=1.png")
    # In a process of its own: a module that defines flags cannot be imported beside another command.
    code = f"from cnn_jax import predict\nfor name in {names}: print(predict._csv([name, 0.5]))\n"
    done = command("", code=code + "print(predict._csv(['a', -1.5]))")
    *rows, number = done.stdout.splitlines()
    assert number == "a,-1.5"  # numbers are not touched
    assert list(csv.reader(rows)) == [[n if n[0] == "x" else f"'{n}", "0.5"] for n in names]
