"""An exported file has the outputs of its workdir; a file that cannot be read is one clear line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax import models
from cnn_jax.errors import UserError
from cnn_jax.inference import artifact, load_classifier, onnx_writer
from cnn_jax.inference.calibration import Calibration
from cnn_jax.inference.classifier import make_scorer
from cnn_jax.inference.seeds import make_mean
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import TTA


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
        (lambda content: with_header(content, class_names=["a", "b"]), "does not take images to one probability"),
        (lambda content: with_header(content, input_size=[32, 31]), "does not take images to one probability"),
        (lambda content: b"PK\3\4" + content, "is not an exported model"),
        (lambda content: b"cnn_jax export\n" + b"0" * 64 + b"\n" + content, "checksum of its header differs"),
    ],
)
def test_other_files(copy, change, says):
    with pytest.raises(UserError, match=says):
        artifact.read(copy(change))


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": "abc"}, {"class_names": [1]}, {"class_names": []}, {"input_size": [32]},
        {"input_size": [10**9, 10**9]}, {"input_size": [True, 1]}, {"config": []}, {"config": {"model": 1}},
        {"preprocessing": {"image_size": 8, "mean": [0, 0, 0], "std": [0, 1, 1]}}, {"preprocessing": 7},
        {"step": -1}, {"step": "1"}, {"seed": -1}, {"seed": "all"}, {"platforms": "cpu"}, {"jax": 7},
        {"payload_bytes": -1}, {"payload_bytes": 10**30}, {"payload_sha256": 1}, {"calibration": {"temperature": 0}},
        {"calibration": 3},
    ],
)  # fmt: skip
def test_a_header_with_impossible_values_is_refused(copy, values):
    with pytest.raises(UserError, match=rf"has an invalid header \({next(iter(values))}\)"):
        artifact.read(copy(lambda content: with_header(content, **values)))


@pytest.mark.parametrize("line", [b"[]", b"null", b"7", b"{", b"[" * 100_000, b'{"format": 1'])
def test_a_header_that_is_no_object_is_refused(copy, line):
    def change(content):
        magic, _, _, payload = content.split(b"\n", 3)
        return b"\n".join([magic, hashlib.sha256(line).hexdigest().encode(), line, payload])

    with pytest.raises(UserError, match="has no header of cnn_jax"):
        artifact.read(copy(change))


def with_program(content, function, classes=10):
    """The file with another program, and valid checksums."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.uint8)
    program = bytes(jax.export.export(jax.jit(function), platforms=("cpu",))(images).serialize())
    start = content[: len(content) - json.loads(content.split(b"\n", 3)[2])["payload_bytes"]]
    checksum = hashlib.sha256(program).hexdigest()
    return with_header(start + program, platforms=["cpu"], payload_bytes=len(program), payload_sha256=checksum)


def endless(images):
    total = jax.lax.while_loop(lambda x: x < 1, lambda x: x * 1, jnp.float32(0))
    return jnp.zeros((images.shape[0], 10)) + total


def sorting(images):
    return jnp.zeros((images.shape[0], 10)) + jnp.sort(images.astype(jnp.float32).reshape(-1)[:10]).reshape(1, 10)


def test_a_program_that_no_network_needs_runs_only_if_it_is_trusted(copy):
    path = copy(lambda content: with_program(content, endless))
    with pytest.raises(UserError, match=r"is not run: its program has the operation stablehlo\.while\..*--trust"):
        load_classifier(path)
    path = copy(lambda content: with_program(content, sorting))
    with pytest.raises(UserError, match=r"is not run: its program has the operation stablehlo\.sort"):
        load_classifier(path)
    assert load_classifier(path, trust=True)(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)


def test_a_program_that_fills_the_memory_is_not_run(copy):
    def function(images):
        large = jnp.broadcast_to(images.astype(jnp.float32)[..., None], (*images.shape, 10**6))
        return jnp.zeros((images.shape[0], 10)) + jnp.exp(large @ jnp.ones((10**6, 10))).sum((1, 2, 3))

    classifier = load_classifier(copy(lambda content: with_program(content, function)))
    with pytest.raises(UserError, match=r"its program takes [\d,]+ MiB for 1 image"):
        classifier(np.zeros((1, 32, 32, 3), np.uint8))


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


@pytest.fixture
def calibrated(trained, tmp_path):
    """A copy of the run with an evaluation."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    step = load_classifier(trained).step
    (workdir / "evaluation.json").write_text(json.dumps({"step": step, "temperature": 2.0, "threshold": 0.25}))
    return workdir


def test_the_temperature_travels_with_the_file(calibrated, photographs, command):
    path, image = calibrated.parent / "model.jaxexport", photographs("1.png") / "1.png"
    done = command("export", f"--workdir={calibrated}", f"--output={path}", "--card")
    assert "temperature 2.000 is in the file, and predict and the page apply it" in done.stdout, done.stderr
    for source in (calibrated, path):
        classifier = load_classifier(source)
        assert classifier.calibration == Calibration(2.0, 0.25)
        own = classifier([image])[0]
        expected = np.sqrt(own) / np.sqrt(own).sum()
        np.testing.assert_allclose(classifier([image], calibrate=True)[0], expected, rtol=1e-5)
        flag = f"--workdir={source}" if source == calibrated else f"--model={source}"
        for more, probabilities, says in (([], expected, True), (["--nocalibrate"], own, False)):
            done = command("predict", flag, str(image), "--json", "--top_k=1", *more)
            assert json.loads(done.stdout)["top"][0]["probability"] == pytest.approx(probabilities.max(), rel=1e-5)
            assert ("calibrated with temperature 2.000" in done.stderr) == says
    text = path.with_suffix(".md").read_text()
    for part in ("Temperature 2.0000", "below 0.2500", "test split of digits", "--card`; trained at commit"):
        assert part in text


def test_a_network_without_mistakes_has_no_temperature_which_is_said(calibrated, photographs, command):
    step = load_classifier(calibrated).step
    (calibrated / "evaluation.json").write_text(json.dumps({"step": step, "temperature": 1.0, "threshold": 0.25}))
    path, image = calibrated.parent / "model.jaxexport", photographs("1.png") / "1.png"
    done = command("export", f"--workdir={calibrated}", f"--output={path}", "--card")
    says = "every validation image is right, so no temperature can be fitted"
    assert f"its probabilities are the network's own: {says}." in done.stdout, done.stderr
    assert f"None: {says}. The web page" in path.with_suffix(".md").read_text()
    done = command("predict", f"--model={path}", str(image))
    assert f"Probabilities are the network's own: {says}.\n" in done.stderr
    np.testing.assert_allclose(load_classifier(path)([image], calibrate=True), load_classifier(path)([image]))


def test_safetensors_hold_names_shapes_and_a_card(trained, tmp_path, command):
    safetensors = pytest.importorskip("safetensors", reason="needs safetensors: pip install 'cnn_jax[safetensors]'")
    path = tmp_path / "model.safetensors"
    done = command("export", f"--workdir={trained}", f"--output={path}")
    assert done.returncode == 0 and "outputs equal to the workdir's (maximum difference 0)" in done.stdout, done.stderr
    with safetensors.safe_open(path, "numpy") as file:
        names, metadata = set(file.keys()), file.metadata()
        assert file.get_tensor("params/conv1_1/kernel").shape == (3, 3, 3, 4)
    assert {"params/head/kernel", "params/head/bias", "batch_stats/conv1_1_bn/mean"} <= names
    assert json.loads(metadata["card"])["class_names"] == list("0123456789")
    images = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(load_classifier(path)(images), load_classifier(trained)(images))
    for change in (lambda c: c[: len(c) // 2], lambda c: b"\xff" * 8 + c[8:], lambda c: c.replace(b"head", b"tail")):
        (tmp_path / "changed.safetensors").write_bytes(change(path.read_bytes()))
        with pytest.raises(UserError):
            load_classifier(tmp_path / "changed.safetensors")


def test_onnx_computes_the_same_in_another_runtime(trained, tmp_path, command):
    pytest.importorskip("onnx", reason="needs onnx: pip install 'cnn_jax[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cnn_jax[onnx]'")
    path = tmp_path / "model.onnx"
    done = command("export", f"--workdir={trained}", f"--output={path}")
    assert done.returncode == 0 and "outputs equal to the workdir's" in done.stdout, done.stderr
    images = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    (found,) = runtime.InferenceSession(str(path)).run(None, {"images": images})
    np.testing.assert_allclose(found, load_classifier(trained).log_probabilities(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage, seeds", [("speedrun", 2), ("transfer_lite", 1), ("resnet18", 1)])
def test_onnx_of_every_kind_of_network(stage, seeds):
    """Views of test-time augmentation, an ensemble, depthwise and strided convolutions, both kinds of pooling."""
    pytest.importorskip("onnx", reason="needs onnx: pip install 'cnn_jax[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cnn_jax[onnx]'")
    config = {"name": {"speedrun": "speednet", "transfer_lite": "efficientnet_lite0"}.get(stage, stage)}
    model, side = models.build(config, 10), 32
    images = np.random.RandomState(0).randint(0, 256, (3, side, side, 3)).astype(np.uint8)

    def init(seed):
        return model.init(jax.random.key(seed), jnp.zeros((1, side, side, 3)), train=False)

    def score(variables, inputs):
        tta = TTA(mirror=True, shift=1) if stage == "speedrun" else TTA()
        return make_scorer(model, variables, Preprocessing(0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), tta)(inputs)

    function = make_mean(score, [jax.jit(init, static_argnums=0)(seed) for seed in range(seeds)], 10)
    content = onnx_writer.convert(function, (side, side), {}).SerializeToString()
    (found,) = runtime.InferenceSession(content).run(None, {"images": images})
    np.testing.assert_allclose(found, function(images), rtol=1e-3, atol=1e-3)


def test_an_operation_that_is_not_translated_is_named():
    pytest.importorskip("onnx", reason="needs onnx: pip install 'cnn_jax[onnx]'")
    with pytest.raises(UserError, match="has the operation sort, which is not translated to ONNX"):
        onnx_writer.convert(lambda images: jnp.sort(images.astype(jnp.float32).sum((1, 2))), (8, 8), {})


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--output=O/m.bin", "--format=safetensors"], "must end in .safetensors"),
        (["--output=O/m.safetensors", "--format=onnx"], "ends in .safetensors, and the format is onnx"),
        (["--output=O/m.md", "--card"], "is where the model card goes"),
        (["--output=O/m", "--format=keras"], "should be one of <jaxexport|onnx|safetensors>"),
    ],
)
def test_formats_and_names(command, trained, tmp_path, arguments, says):
    done = command("export", f"--workdir={trained}", *(each.replace("=O", f"={tmp_path}") for each in arguments))
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert os.listdir(tmp_path) == []
