"""An exported file has the outputs of its workdir; a file that cannot be read is one clear line."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax.errors import UserError
from cnn_jax.inference import artifact, load_classifier


@pytest.fixture(scope="module")
def classifier(trained):
    return load_classifier(trained, step="latest")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The exported file, and the finished command."""
    path = tmp_path_factory.mktemp("export") / "model.jaxexport"
    arguments = [f"--workdir={trained}", f"--output={path}", "--step=latest"]
    done = subprocess.run(
        [sys.executable, "-m", "cnn_jax.export", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return path, done


@pytest.fixture
def copy(made, tmp_path):
    """Writes a changed copy of the exported file."""

    def write(change):
        path = tmp_path / "changed.jaxexport"
        path.write_bytes(change(made[0].read_bytes()))
        return path

    return write


def with_header(content, **values):
    """The file with a changed header and its valid checksum."""
    magic, _, line, payload = content.split(b"\n", 3)
    header = json.loads(line) | values
    line = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
    return b"\n".join([magic, hashlib.sha256(line).hexdigest().encode(), line, payload])


def test_the_command_describes_the_file(made, trained):
    path, done = made
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path}: {path.stat().st_size:,} bytes, step ")
    assert "outputs equal to the workdir's (maximum difference " in done.stdout
    assert "10 classes" in done.stdout and "cpu and cuda" in done.stdout
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("count", [0, 1, 3, 17, 129])
@pytest.mark.parametrize("size", [(32, 32), (20, 45)])
def test_outputs_are_those_of_the_workdir(classifier, made, count, size):
    images = np.random.RandomState(0).randint(0, 256, (count, *size, 3)).astype(np.uint8)
    outputs = load_classifier(made[0])(images)
    assert outputs.shape == (count, 10) and outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, classifier(images), rtol=1e-6, atol=1e-7)


def test_any_number_of_images_at_once(classifier, made):
    """The batch size is symbolic, so sizes other than those of the classifier work too."""
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    direct = load_classifier(made[0]).log_probabilities(images)
    assert direct.shape == (5, 10) and direct.dtype == np.float32
    np.testing.assert_allclose(direct, classifier.log_probabilities(images), rtol=1e-5, atol=1e-6)


def test_the_header(classifier, made):
    magic, checksum, line, payload = made[0].read_bytes().split(b"\n", 3)
    header = json.loads(line)
    assert magic == b"cnn_jax export"
    assert checksum.decode() == hashlib.sha256(line).hexdigest()
    assert header["payload_sha256"] == hashlib.sha256(payload).hexdigest()
    assert header["platforms"] == ["cpu", "cuda"] and header["jax"] == jax.__version__
    loaded = load_classifier(made[0])
    for name in ("class_names", "input_size", "preprocessing", "step"):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert loaded.metadata["config"] == classifier.metadata["config"]
    assert loaded.model is None and loaded.source == str(made[0])


def test_truncated_anywhere(made, copy):
    length = len(made[0].read_bytes())
    for cut in [0, 1, 14, 15, 16, 60, 79, 80, 81, 500, length // 2, length - 1]:
        with pytest.raises(UserError, match=r"is damaged|is truncated|is not an exported model") as raised:
            artifact.read(copy(lambda content, cut=cut: content[:cut]))
        assert "\n" not in str(raised.value)


def test_flipped_bits_anywhere(made, copy):
    content = made[0].read_bytes()
    random = np.random.RandomState(0)
    start_of_program = len(content) - json.loads(content.split(b"\n", 3)[2])["payload_bytes"]
    places = [
        *range(0, 82, 3),
        *random.randint(82, start_of_program, 15),
        *random.randint(start_of_program, len(content), 15),
    ]

    def flip(content, place):
        changed = bytearray(content)
        changed[place] ^= 1 << random.randint(8)
        return bytes(changed)

    for place in places:
        with pytest.raises(UserError, match=r"is damaged|is not an exported model"):
            artifact.read(copy(lambda content, place=place: flip(content, place)))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda content: with_header(content, format=2), "has format 2, and this cnn_jax reads format 1. Update"),
        (lambda content: with_header(content, step=None, jax=None), "lacks jax, step"),
        (lambda content: with_header(content, platforms=["tpu"]), "runs on tpu, and JAX uses cpu here"),
        (lambda content: b"PK\3\4" + content, "is not an exported model"),
        (lambda content: b"cnn_jax export\n" + b"0" * 64 + b"\n" + content, "checksum of its header differs"),
    ],
)
def test_other_files(copy, change, says):
    with pytest.raises(UserError, match=says):
        artifact.read(copy(change))


def test_a_program_that_this_jax_cannot_read_names_both_versions(copy):
    """A file of a newer JAX has a valid checksum and cannot be deserialized."""
    program = b"what jax 99 writes"

    def change(content):
        content = content[: len(content) - json.loads(content.split(b"\n", 3)[2])["payload_bytes"]] + program
        checksum = hashlib.sha256(program).hexdigest()
        return with_header(content, jax="99.0.0", payload_bytes=len(program), payload_sha256=checksum)

    with pytest.raises(UserError, match=rf"exported by jax 99\.0\.0, and jax {jax.__version__} cannot read it"):
        artifact.read(copy(change))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--workdir=W"], "--output=... is missing"),
        (["--workdir=W", "--output=O/none/m"], "is in a folder that does not exist"),
        (["--workdir=W", "--output=O"], "is a folder: name a file"),
        (["--workdir=W", "--output=O/m", "--step=first"], "--step is 'first'; it must be best, latest"),
        (["--workdir=W", "--output=/proc/model"], "Cannot write --output=/proc/model"),
    ],
)
def test_one_clear_line(command, trained, tmp_path, arguments, says):
    values = {"--workdir=W": f"--workdir={trained}"}
    given = [values.get(argument, argument.replace("=O", f"={tmp_path}")) for argument in arguments]
    done = command("export", *given)
    assert done.returncode == 1 and done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_an_existing_file_survives_a_full_disk(classifier, made, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(b"the one before")
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="No space left on device"):
        artifact.write(path, classifier.log_probabilities, classifier.metadata, 1)
    assert os.listdir(tmp_path) == ["model"] and path.read_bytes() == b"the one before"


def test_an_exported_model_needs_no_framework(made, trained):
    code = f"""
import sys
import numpy as np
from cnn_jax.inference import load_classifier
assert load_classifier({str(made[0])!r})(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)
heavy = {{"orbax", "flax", "optax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "clu",
         "ml_collections", "cnn_jax.training", "cnn_jax.models", "cnn_jax.workdir.checkpoint", "cnn_jax.data.splits"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
