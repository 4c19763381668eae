"""The recipes of docs/extending.md, followed literally: its code goes into a copy of the package, and its commands run.

All recipes are applied to one copy, and one process there runs all commands, made small by `SMALL`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from whole_runs import final_arrays, records

from cnn_jax import config as config_lib
from cnn_jax.training.loop import train

TOTAL = 30  # steps
SMALL = {
    "data.name": "digits",
    "data.train_examples": "480",
    "data.validation": "40",
    "data.image_size": "10",
    "batch_size": "16",
    "epochs": "1",
    "steps_per_call": "5",
    "tensorboard": "off",
}
NARROW = {
    "model.widths": "(4,)",
    "model.convs_per_block": "1",
    "model.hidden": "()",
    "model.dropout": "()",
    "model.batch_norm": "false",
}
CONTROL = "python -m cnn_jax.main --config=quickstart --workdir=runs/control"

# Runs commands of `python -m cnn_jax.main` in one process, which imports JAX once.
PROGRAM = """
import json, sys, traceback
from cnn_jax import cli, config
from cnn_jax.training.loop import train

commands, small, narrow = json.loads(sys.argv[1])
for command in commands:
    flags, overrides = cli.split_overrides(command)
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    defaults = small if "model.name" in overrides else small | narrow
    try:
        assert train(config.load(flags["config"], defaults | overrides), flags["workdir"]) == 0
    except Exception:
        traceback.print_exc()
"""


def recipes():
    """The code blocks of each section: `{"Network": [("python", "# cnn_jax/..."), ...], ...}`."""
    sections = re.split(r"^## (.+)\n", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)[1:]
    blocks = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {title: blocks.findall(text) for title, text in zip(sections[::2], sections[1::2])}


def commands():
    texts = [text.replace("\\\n", " ") for blocks in recipes().values() for language, text in blocks if not language]
    return [line for text in texts for line in text.splitlines()]


def apply(language, text, root):
    """Makes the new file of a Python block, or the changes of a diff, whose context must occur once."""
    header, _, text = text.partition("\n")
    path = root / header.removeprefix("# ")
    if language == "python":
        assert not path.exists(), path
        path.write_text(text)
        return
    content = path.read_text()
    for hunk in text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        assert {line[0] for line in lines} <= set(" +-"), hunk
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert f"\n{content}".count(f"\n{old}") == 1, f"{path} does not have these lines once:\n{old}"
        content = content.replace(old, new)
    path.write_text(content)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with all recipes applied."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("cnn_jax", "configs", "tests"):
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for blocks in recipes().values():
        for language, text in blocks:
            if language:
                apply(language, text, root)
    return root


@pytest.fixture(scope="module")
def runs(copy):
    """The folder of the workdirs, and what the process wrote."""
    labels = np.repeat([0, 1], 400)
    images = np.random.RandomState(0).randint(0, 128, (800, 10, 10, 3))  # dark ones; those of class 1 are bright
    images[labels == 1] += 127
    np.savez(copy / "images.npz", image=images.astype(np.uint8), label=labels)
    lines = [CONTROL, *(command.replace("DIR", str(copy)) for command in commands())]
    argument = json.dumps([[shlex.split(line)[3:] for line in lines], SMALL, NARROW])
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], cwd=copy, env=environment, capture_output=True, text=True
    )
    return copy / "runs", done.stdout + done.stderr


@pytest.fixture
def run(runs):
    """Returns the workdir of a finished run."""

    def finished(name):
        folder, output = runs
        assert f"Workdir: runs/{name}\n" in output, output
        return folder / name

    return finished


def values(workdir, name, split="train"):
    return [record[name] for record in records(workdir) if record["split"] == split]


def config_of(workdir):
    return json.loads((workdir / "config.json").read_text())


def test_every_recipe_ends_with_a_command():
    for title, blocks in recipes().items():
        languages = [language for language, _ in blocks]
        assert languages[-1] == "" and len(languages) > 1, title
    assert all(line.startswith("python -m cnn_jax.main --config=") for line in commands())


def test_links_lead_to_files():
    for link in re.findall(r"\]\((.+?)\)", (ROOT / "docs" / "extending.md").read_text()):
        assert (ROOT / "docs" / link).exists(), link


def test_what_is_not_used_changes_no_number(run, tmp_path):
    config = config_lib.load("quickstart", SMALL | NARROW)
    assert train(config, str(tmp_path)) == 0
    jax.tree.map(np.testing.assert_array_equal, final_arrays(run("control"), TOTAL), final_arrays(tmp_path, TOTAL))


def test_network(run):
    model, _ = final_arrays(run("mlp"), TOTAL)
    assert model["params"]["dense"]["kernel"].shape == (10 * 10 * 3, 64)
    assert config_of(run("mlp"))["model"] == {"name": "mlp", "hidden": 64, "trainable": "all"}
    losses = values(run("mlp"), "loss")
    assert losses[-1] < losses[0]


def test_stage(run):
    config = config_of(run("smooth"))
    assert config["label_smoothing"] == 0.1 and config["augment"]["flip"]
    rates = values(run("smooth"), "learning_rate")
    assert rates[0] > 0.009 and rates[-1] < 0.001


def test_augmentation(run):
    first, control = (values(run(name), "loss")[0] for name in ("brightness", "control"))
    assert first != control and first == pytest.approx(control, rel=0.2)


def test_optimizer(run):
    _, state = final_arrays(run("rmsprop"), TOTAL)
    assert "nu" in {key.key for path, _ in jax.tree.leaves_with_path(state) for key in path if hasattr(key, "key")}
    losses = values(run("rmsprop"), "loss")
    assert losses[-1] < losses[0]


def test_schedule(run):
    steps = np.array(values(run("quadratic"), "step"))
    expected = 0.01 * (1 - (steps - 1) / TOTAL) ** 2
    np.testing.assert_allclose(values(run("quadratic"), "learning_rate"), expected, rtol=1e-5)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_metric(run, split):
    top1, top3 = (values(run("top3"), name, split) for name in ("accuracy", "top3_accuracy"))
    assert all(one < three <= 1 for one, three in zip(top1, top3, strict=True))


def test_data_set(run):
    model, _ = final_arrays(run("npz"), TOTAL)
    assert model["params"]["head"]["kernel"].shape[-1] == 2
    assert values(run("npz"), "accuracy")[-1] > 0.9


RECENT = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": "0.005",
    "optimizer.weight_decay": "0.05",
    "optimizer.clip_norm": "1.0",
    "optimizer.schedule": "onecycle",
    "augment.mixup": "0.2",
    "epochs": "2",
}


@pytest.mark.parametrize(
    "network, head",
    [
        pytest.param({"model.name": "resnet18", "model.width": "8"}, (64, 10), marks=pytest.mark.slow),
        (NARROW | {"model.widths": "(16,)"}, (400, 10)),
    ],
    ids=["resnet18", "cnn"],
)
def test_learns_with_adamw_clipping_mixup_and_one_cycle(tmp_path, network, head):
    assert train(config_lib.load("quickstart", SMALL | RECENT | network), str(tmp_path)) == 0
    model, _ = final_arrays(tmp_path, 2 * TOTAL)
    assert model["params"]["head"]["kernel"].shape == head
    rates = values(tmp_path, "learning_rate")  # of steps 4, 9, ..., 59; the peak is at step 18
    assert 0.0049 < max(rates) == rates[3] and rates[0] < 0.002 and rates[-1] < 1e-4
    assert values(tmp_path, "accuracy", "test")[0] > 0.5


def test_cosine_restarts_after_a_warm_up(tmp_path):
    changes = {
        "optimizer.schedule": "restarts",
        "optimizer.restarts.epochs": "0.4",
        "optimizer.warmup_epochs": "0.2",
        "augment.cutmix": "1.0",
    }
    assert train(config_lib.load("quickstart", SMALL | NARROW | changes), str(tmp_path)) == 0
    # Of steps 4, 9, ...: 6 of 30 steps rise, then decays take 12 and 24.
    decays = 0.5 * (1 + np.cos(np.pi * np.array([3 / 12, 8 / 12, 1 / 24, 6 / 24, 11 / 24])))
    np.testing.assert_allclose(values(tmp_path, "learning_rate"), 0.01 * np.array([4 / 6, *decays]), rtol=1e-5)


@pytest.mark.slow
def test_the_tests_of_the_tables_pass_in_the_copy(copy):
    """They compare the names in the tables with those in the configuration, and networks with their protocol."""
    files = ["test_config.py", "models/test_protocols.py", "training/test_optim.py", "training/test_metrics.py"]
    command = [sys.executable, "-m", "pytest", "-q", *(f"tests/{file}" for file in files), "-k", "not explains_itself"]
    shutil.copy(ROOT / "setup.cfg", copy)
    done = subprocess.run(command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
