"""Every figure renders, whatever the names and numbers; the diagram shows the network."""

import io
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, stage
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cnn_jax import models
from cnn_jax.evaluation import scores
from cnn_jax.report import diagram, figures
from cnn_jax.transforms.augment import Augmentation

HOSTILE = ("$cat$", r"\frac{", "a_b^c", "<b>", "", "猫", "long " * 20, "%", "$", "\n", "é", "12")


def render(figure):
    assert isinstance(figure, Figure)
    content = figures.png(figure, dpi=40)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) >= 20
    return [text.get_text() for text in figure.findobj(Text)]


def initial(name, size=32):
    model = models.build(stage(name).model, 10)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def predictions(n, classes):
    generator = np.random.RandomState(0)
    logits = generator.randn(n, classes) * 3
    labels = generator.randint(0, classes, n).astype(np.int32)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels


@pytest.mark.parametrize("name", ["basic", "baseline", "augment"])
def test_the_diagram_is_the_network(name):
    model, variables = initial(name)
    drawn = "\n".join(render(figures.network_diagram(model, variables, (32, 32))))
    for layer in variables["params"]:
        assert layer in drawn
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert f"{total:,} parameters" in drawn
    found = diagram.layers(model, variables, (32, 32))
    assert sum(layer.parameters for layer in found) == total
    assert sum(layer.statistics for layer in found) == sum(
        leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {}))
    )


def test_operations_between_the_layers_are_found():
    found = diagram.layers(*initial("augment"), (32, 32))
    block = ["Conv", "ReLU", "BatchNorm", "Conv", "ReLU", "BatchNorm", "max-pool", "Dropout"]
    head = ["flatten", "Dense", "ReLU", "BatchNorm", "Dropout", "Dense"]
    assert [layer.kind for layer in found] == ["input", *block * 3, *head]
    assert [layer.detail for layer in found if layer.kind == "Dropout"] == ["0.2", "0.3", "0.4", "0.5"]
    assert [layer.shape for layer in found if layer.kind == "max-pool"] == [(16, 16, 32), (8, 8, 64), (4, 4, 128)]
    assert {layer.detail for layer in found if layer.kind == "max-pool"} == {"2\N{MULTIPLICATION SIGN}2"}
    assert found[-1].shape == (10,)


def test_another_network_is_drawn_too():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(x)))

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.silu(nn.Conv(4, (5, 5), name="stem")(x)).mean((1, 2))
            block = Block(name="shared")
            return nn.Dense(3)(block(block(x)))

    model = Other()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    found = diagram.layers(model, variables, (8, 8))
    assert [layer.kind for layer in found] == ["input", "Conv", "SiLU", "global mean", "Block", "Block", "Dense"]
    assert sum(layer.parameters for layer in found) == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert any("shared" in text for text in render(figures.network_diagram(model, variables, (8, 8))))


def record(step, epoch, split, loss, accuracy=0.5):
    return {"step": step, "epoch": epoch, "split": split, "loss": loss, "accuracy": accuracy}


def test_learning_curves():
    records = [
        record(3, 0.75, "train", 4.0),
        record(6, 1.5, "train", 2.0),
        record(6, 1, "validation", 2.5),
        record(8, 2.0, "train", None),
        record(8, 2, "validation", None),
        record(8, 2, "test", 1.25, 0.75),
    ]
    figure = figures.learning_curves(records)
    assert {"training", "validation", "test 1.250", "test 75.0%"} <= set(render(figure))
    train = next(line for line in figure.axes[0].lines if line.get_label() == "training")
    # The second record lies half in each epoch; the third has no number.
    np.testing.assert_allclose(train.get_xydata(), [[1, (0.75 * 4 + 0.25 * 2)], [2, 2.0]])


@pytest.mark.parametrize("records", [[], [record(5, 0.5, "train", 1.0)], [record(5, 1.0, "train", None, None)]])
def test_learning_curves_of_few_records(records):
    render(figures.learning_curves(records))
    render(figures.compare_runs({"run": records, "$other$": records}))


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_confusion_matrix(classes):
    names = (HOSTILE * 4)[:classes]
    texts = render(figures.confusion_matrix(scores.confusion_matrix(*predictions(300, classes)), names))
    assert {"predicted class", "true class"} <= set(texts)
    render(figures.confusion_matrix(np.zeros((classes, classes), np.int64), names))


def test_reliability_diagram():
    log_probs, labels = predictions(300, 5)
    bins = scores.calibration_bins(log_probs, labels)
    error = scores.expected_calibration_error(bins)
    assert f"Expected calibration error {error:.1%}" in render(figures.reliability_diagram(bins))
    render(figures.reliability_diagram(scores.calibration_bins(log_probs[:1], labels[:1])))


def test_mistakes():
    log_probs, labels = predictions(30, 12)
    images = np.random.RandomState(0).randint(0, 256, (30, 9, 12, 3)).astype(np.uint8)
    worst = scores.worst_mistakes(log_probs, labels, 1)[0]
    texts = render(figures.mistakes(images, labels, log_probs, [f"c{i}" for i in range(12)], 4))
    assert f"c{log_probs[worst].argmax()} · {np.exp(log_probs[worst].max()):.0%}" in texts
    assert sum(text.startswith("true: c") for text in texts) == 4
    render(figures.mistakes(images, labels, log_probs, HOSTILE))
    assert "No mistakes." in render(figures.mistakes(images, log_probs.argmax(-1), log_probs, HOSTILE))


@pytest.mark.parametrize("shape", [(3, 3, 3, 32), (1, 1, 3, 1), (5, 5, 1, 7), (3, 3, 64, 20)])
def test_filters(shape):
    render(figures.filters(np.random.RandomState(0).randn(*shape)))
    render(figures.filters(np.zeros(shape)))


def test_augmentations():
    config = stage("augment")
    image = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    augment = Augmentation.from_config(config.augment, config.data.mean, image.shape[:2])
    figure = figures.augmentations(image, augment, count=5)
    assert "original" in render(figure)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[0], image)
    assert any(np.abs(picture - image / 255).max() > 0.1 for picture in shown[1:])


def test_a_data_uri_holds_the_file():
    content = figures.png(Figure(figsize=(1, 1)))
    assert figures.data_uri(content).startswith("data:image/png;base64,iVBORw0KGgo")


def test_the_script_draws_the_figures_of_the_readme(trained, tmp_path):
    start = [sys.executable, "scripts/figures.py", f"--output={tmp_path}"]
    done = subprocess.run([*start, f"--runs={trained}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = {"network", "augmentations", "validation_curves", f"learning_curves_{trained.name}"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    done = subprocess.run([*start, "--runs=/dev/null/x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "Error: /dev/null/x of --runs has no metrics.jsonl: name the workdirs of runs.\n"
