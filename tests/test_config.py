"""Configurations: declared keys, stages, overrides, and the comparison with the one in a workdir."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, stage

from cnn_jax import config as config_lib
from cnn_jax.configs import base
from cnn_jax.errors import UserError
from cnn_jax.models import MODELS

STAGES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
# All values of base, and of each stage those that differ from base, with null for a key that it lacks.
FROZEN = json.loads((ROOT / "tests" / "frozen_configs.json").read_text())


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_valid_and_explains_itself(name):
    config_lib.validate(config_lib.load(name))
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert text.startswith('"""')
    if name != "base":
        assert f"python -m cnn_jax.main --config={name} --workdir=/tmp/{name}\n" in text


@pytest.mark.parametrize("name", FROZEN)
def test_stages_have_the_values_that_published_runs_had(name):
    found = config_lib.flatten(config_lib.load(name))
    # Keys that have been declared since are at their defaults.
    defaults = {name: key.default for name, key in config_lib.keys_of(found["model.name"]).items()}
    expected = {key: value for key, value in (defaults | FROZEN["base"] | FROZEN[name]).items() if value is not None}
    # As JSON, where 0, 0.0 and false differ.
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("name", FROZEN)
def test_a_signal_waits_for_at_most_fifty_steps(name):
    """Signals are noticed between chunks, so no stage may make its chunks longer."""
    assert config_lib.load(name).steps_per_call <= 50


def test_what_changes_no_number():
    assert set(config_lib.FREE) == {
        *("data.dir", "features.dir", "loggers", "on_nan", "profile", "steps_per_call", "tensorboard", "warm_up"),
        *("data.stream", "data.memory", "data.on_bad_image"),
        *("eval.epochs", "checkpoint.epochs", "checkpoint.minutes"),
        *("mesh.data", "mesh.seed", "mesh.images", "mesh.steps"),  # only how sums are rounded: see provenance.json
    }


@pytest.mark.parametrize(
    "before, after, keys",
    [
        ("base", "basic", {"model.convs_per_block", "model.hidden"}),
        ("basic", "baseline", {"model.convs_per_block", "model.hidden"}),
        ("baseline", "batchnorm", {"model.batch_norm"}),
        ("batchnorm", "dropout", {"model.dropout"}),
        ("dropout", "dropout_scheduled", {"model.dropout"}),
        ("dropout_scheduled", "augment", {"augment.flip", "augment.shift", "epochs"}),
        (
            "augment",
            "modern",  # another recipe for the same network
            {
                *("batch_size", "label_smoothing", "model.bn_momentum", "model.dropout", "average.decay"),
                *("average.ramp", "eval.mirror", "optimizer.learning_rate", "optimizer.nesterov"),
                *("optimizer.schedule", "optimizer.warmup_epochs", "optimizer.weight_decay"),
            },
        ),
        ("transfer", "transfer_lite", {"model.name", "data.image_size"}),
        (
            "transfer_lite",
            "transfer_finetune",
            {"finetune.epochs", "finetune.trainable", "optimizer.groups"},
        ),
    ],
)
def test_a_stage_is_the_one_before_and_its_difference(before, after, keys):
    old, new = config_lib.flatten(stage(before)), config_lib.flatten(stage(after))
    assert {key for key in old | new if old.get(key) != new.get(key)} == keys


@pytest.mark.parametrize("network", MODELS)
def test_every_key_has_help_and_a_default_that_its_rule_allows(network):
    for name, key in config_lib.keys_of(network).items():
        assert key.help and key.help == key.help.strip(" .;:"), name
        assert key.rule.allows(key.default), name
        assert key.parse(str(key.default)) == key.default and type(key.parse(str(key.default))) is type(key.default)
    config = base.get_config(network)
    assert config.model.name == network
    config_lib.validate(config)


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("epochs", 0),
        ("seed", -1),
        ("steps_per_call", 0),
        ("dtype", "float16"),
        ("label_smoothing", 1.0),
        ("data.validation", 1.0),
        ("data.validation", 1.5),
        ("data.validation", -0.1),
        ("data.validation", float("nan")),
        ("data.train_examples", -5),
        ("data.mean", (0.0, 0.0)),
        ("data.std", (0.0, 1.0, 1.0)),
        ("model.name", "resnet"),
        ("model.widths", (32, 0)),
        ("model.dropout", (0.1, 1.0)),
        ("optimizer.name", "lion"),
        ("optimizer.learning_rate", -0.1),
        ("optimizer.schedule", "step"),
        ("optimizer.momentum", 1.0),
        ("optimizer.groups", (("head",),)),
        ("optimizer.groups", (("[", 0.1),)),
        ("optimizer.groups", (("head", -0.1),)),
        ("finetune.trainable", "head("),
        ("model.trainable", ""),
        ("augment.shift", 1.0),
        ("augment.crop_mode", "wrap"),
        ("optimizer.muon.steps", 0),
        ("optimizer.muon.momentum", 1.0),
        ("average.decay", 1.0),
        ("average.every", 0),
        ("eval.shift", -1),
        ("eval.epochs", 0),
        ("on_nan", "ignore"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value):
    config = stage("baseline")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"config\.{key} is "):
        config_lib.validate(config)


def test_a_workdir_of_an_earlier_version_lacks_keys_that_are_now_at_their_defaults(tmp_path):
    path = tmp_path / "config.json"
    config_lib.write(stage("augment"), path)
    held = json.loads(path.read_text())
    del held["finetune"], held["optimizer"]["groups"], held["model"]["trainable"], held["average"], held["eval"]
    path.write_text(json.dumps(held))
    config_lib.check_same(stage("augment"), path)
    config = stage("augment")
    config.finetune.trainable = "head"
    with pytest.raises(UserError, match=r"config\.finetune\.trainable is 'all' there and 'head' here"):
        config_lib.check_same(config, path)


def test_a_workdir_may_lack_keys_of_any_network(tmp_path):
    held = config_lib.with_defaults({"model.name": "speednet", "model.whiten_size": 3})
    assert held["model.whiten_size"] == 3 and held["model.widths"] == [64, 256, 256] and held["batch_size"] == 32
    assert "model.hidden" not in held
    assert config_lib.with_defaults({"model.name": "removed"})["model.name"] == "removed"


def test_the_second_phase_is_the_run_with_three_keys_changed():
    config = stage("transfer_finetune")
    first, second = map(config_lib.flatten, config_lib.phases(config))
    assert first == config_lib.flatten(config)
    changed = {key: second[key] for key in first if first[key] != second[key]}
    assert changed == {
        "epochs": config.finetune.epochs,
        "model.trainable": config.finetune.trainable,
        "optimizer.learning_rate": config.finetune.learning_rate,
    }
    assert config_lib.phases(stage("transfer_lite")) == [stage("transfer_lite")]


def test_unknown_and_missing_keys():
    config = stage("baseline")
    with config.unlocked():
        config.optimizer.learningrate = 0.1
    with pytest.raises(
        UserError, match=r"no config\.optimizer\.learningrate\. Did you mean config\.optimizer\.learning_rate"
    ):
        config_lib.validate(config)
    config = stage("baseline")
    with config.unlocked():
        del config.batch_size
    with pytest.raises(UserError, match=r"config\.batch_size is missing"):
        config_lib.validate(config)


def test_load_explains_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*baseline"):
        config_lib.load(tmp_path / "nothing.py")
    with pytest.raises(UserError, match=r"no stage bathnorm\. The stages are .*batchnorm"):
        config_lib.load("bathnorm")
    (tmp_path / "broken.py").write_text("from configs import baseline\ndef get_config():\n  return baseline.nothing")
    with pytest.raises(UserError, match=r"broken.py fails: AttributeError"):
        config_lib.load(tmp_path / "broken.py")
    (tmp_path / "typo.py").write_text(
        "from configs import baseline\ndef get_config():\n  c = baseline.get_config()\n  c.epoch = 3\n  return c"
    )
    with pytest.raises(UserError, match=r"typo.py fails.*epoch"):
        config_lib.load(tmp_path / "typo.py")


@pytest.mark.parametrize("package", ["configs", "cnn_jax.configs"])
def test_a_config_file_anywhere_may_start_from_a_stage(tmp_path, package):
    (tmp_path / "mine.py").write_text(
        f"from {package} import batchnorm\ndef get_config():\n  c = batchnorm.get_config()\n  c.epochs = 3\n  return c"
    )
    expected = stage("batchnorm")
    expected.epochs = 3
    assert config_lib.load(tmp_path / "mine.py") == expected


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("epochs", "3", 3),
        ("optimizer.learning_rate", "1", 1.0),
        ("data.validation", "3000", 3000.0),
        ("data.dir", "", ""),
        ("augment.flip", "True", True),
        ("augment.flip", "false", False),
        ("model.widths", "(8, 16)", (8, 16)),
        ("model.widths", "8, 16", (8, 16)),
        ("model.widths", "[8]", (8,)),
        ("model.widths", "8", (8,)),
        ("model.hidden", "()", ()),
        ("data.mean", "()", ()),
        ("optimizer.groups", "(('head', 0.1),)", (("head", 0.1),)),
        ("loggers", "csv", ("csv",)),
        ("loggers", "csv,wandb", ("csv", "wandb")),
        ("loggers", "('csv', 'wandb')", ("csv", "wandb")),
    ],
)
def test_overrides(key, text, value):
    found = config_lib.flatten(config_lib.load("batchnorm", {key: text}))
    assert found[key] == value and type(found[key]) is type(value)
    others = config_lib.flatten(stage("batchnorm"))
    assert found | {key: others[key]} == others


@pytest.mark.parametrize(
    "key, text, says",
    [
        ("epochs", "1.5", r"config\.epochs is '1\.5'; it must be a whole number"),
        ("epochs", "0", r"config\.epochs is 0; it must be"),
        ("augment.flip", "maybe", r"config\.augment\.flip is 'maybe'; it must be true or false"),
        ("optimizer.learning_rate", "nan", r"config\.optimizer\.learning_rate is nan"),
        ("model.widths", "(8,", r"config\.model\.widths is '\(8,'"),
        ("learning_rate", "1", r"Did you mean config\.optimizer\.learning_rate\?"),
        ("optimizer.lr", "1", r"Did you mean config\.optimizer\.learning_rate\?"),
        ("lr", "1", r"Did you mean config\.optimizer\.learning_rate\?"),
        ("optimizer.wd", "1", r"Did you mean config\.optimizer\.weight_decay\?"),
        ("widths", "8", r"Did you mean config\.model\.widths\?"),
        ("model.drop_out", "8", r"Did you mean config\.model\.dropout\?"),
        ("zzz", "8", r"no config\.zzz\. .* lists all keys"),
        ("optimizer", "8", r"config\.optimizer is a section"),
    ],
)
def test_overrides_that_are_refused(key, text, says):
    with pytest.raises(UserError, match=says):
        config_lib.load("batchnorm", {key: text})


def test_another_network_has_its_defaults_and_the_trainable_modules_of_the_stage():
    changes = {"model.bn_momentum": "0.5", "model.name": "speednet"}  # in any order
    config = config_lib.load("transfer", changes)
    config_lib.validate(config)
    expected = base.get_config("speednet").model
    expected.update({"trainable": "head", "bn_momentum": 0.5})
    assert config.model == expected
    with pytest.raises(UserError, match=r"no config\.model\.hidden of the network speednet"):
        config_lib.load("batchnorm", {"model.name": "speednet", "model.hidden": "(8,)"})
    with pytest.raises(UserError, match=r"config\.model\.name is 'resnet'; the networks are: cnn, speednet"):
        config_lib.load("batchnorm", {"model.name": "resnet"})
    with pytest.raises(Exception, match="locked"):
        config.model.nothing = 1


def test_another_backbone_keeps_the_head_of_the_stage():
    stage_ = config_lib.load("transfer_lite", {"model.hidden": "(8,)", "model.dropout": "(0.1,)"})
    config_lib.use_network(stage_, "inception_resnet_v2")
    assert stage_.model.to_dict() == {
        **stage("transfer").model.to_dict(),
        "name": "inception_resnet_v2",
        "hidden": (8,),
        "dropout": (0.1,),
    }


def test_the_listing_has_the_keys_of_the_network():
    text = config_lib.listing(config_lib.load("speedrun"))
    assert "--config.model.whiten_size=2\n    side in pixels" in text
    assert "--config.model.widths='(64, 256, 256)'\n" in text
    assert "hidden" not in text


@pytest.mark.parametrize("first", ["cnn_jax.configs.batchnorm", "cnn_jax.config", "cnn_jax.models", "cnn_jax.keys"])
def test_modules_can_be_imported_in_any_order(command, first):
    done = command("", code=f"import {first}, cnn_jax.config, cnn_jax.configs.batchnorm; print('imported')")
    assert done.stdout == "imported\n", done.stderr


def run_elsewhere(packages, folder, *arguments):
    """Runs a command with only what is in a folder of packages, as where there is no clone."""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)


@pytest.mark.slow
def test_a_stage_runs_where_only_the_wheel_is_installed(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("cnn_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", str(source)]
    subprocess.run(build, check=True, timeout=150)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    arguments = ["cnn_jax.main", "--config=quickstart", f"--workdir={tmp_path / 'run'}", "--config.epochs=1"]
    arguments += ["--config.data.train_examples=64", "--config.data.validation=64", "--config.data.image_size=8"]
    arguments += ["--config.model.widths=4", "--config.model.hidden=8", "--config.tensorboard=off"]
    first = run_elsewhere(tmp_path / "site", elsewhere, *arguments)
    assert "Test split, 359 images" in first.stdout, first.stderr
    other = run_elsewhere(tmp_path / "site", elsewhere, *arguments, "--config.batch_size=16")
    assert "config.batch_size is 32 there and 16 here" in other.stderr
    where = run_elsewhere(tmp_path / "site", elsewhere, "cnn_jax.config", "nothing")
    assert "The stages are augment, " in where.stderr


def test_a_workdir_takes_the_same_configuration_alone(tmp_path):
    path = tmp_path / "config.json"
    config = stage("augment")
    config_lib.write(config, path)
    assert json.loads(path.read_text())["model"]["widths"] == [32, 64, 128]
    config_lib.check_same(stage("augment"), path)
    config.data.dir, config.steps_per_call = "elsewhere", 7
    config_lib.check_same(config, path)
    config.batch_size = 64
    with pytest.raises(UserError, match=r"config\.batch_size is 32 there and 64 here"):
        config_lib.check_same(config, path)
    for damaged in ("{", "[]"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            config_lib.check_same(config, path)


@pytest.mark.parametrize(
    "held, asked",
    [
        ({"epochs": 5}, {"epochs": 6}),
        ({"optimizer.schedule": "restarts", "epochs": 5}, {"epochs": 6}),
        ({"finetune.epochs": 2}, {"finetune.epochs": 3}),
        ({"optimizer.schedule": "cosine"}, {"finetune.epochs": 3}),  # a second phase, after the first has ended
        ({"early_stopping.patience": 3}, {"early_stopping.patience": 4}),
        ({"early_stopping.patience": 3}, {"early_stopping.patience": 0}),
    ],
)
def test_a_run_may_become_longer(tmp_path, held, asked):
    config = stage("augment")
    config.update_from_flattened_dict(held)
    config_lib.write(config, tmp_path / "config.json")
    before = {key: config_lib.flatten(config)[key] for key in asked}
    config.update_from_flattened_dict(asked)
    longer = config_lib.check_same(config, tmp_path / "config.json")
    assert longer == {key: (before[key], value) for key, value in asked.items()}


@pytest.mark.parametrize(
    "held, asked, message",
    [
        ({"epochs": 5}, {"epochs": 4}, "another run: config.epochs is 5 there and 4 here"),
        ({"epochs": 5}, {"epochs": 6, "batch_size": 8}, "another run: .*config.batch_size"),
        ({"finetune.epochs": 2}, {"epochs": 200}, "another run: config.epochs"),
        ({"early_stopping.patience": 3}, {"early_stopping.patience": 2}, "another run: config.early_stopping"),
        ({}, {"early_stopping.patience": 2}, "another run: config.early_stopping"),
        ({"early_stopping.patience": 3}, {"eval.epochs": 2}, "another run: config.eval.epochs"),
        ({"optimizer.schedule": "cosine"}, {"epochs": 200}, "schedule=cosine follows from config.epochs.*init_from="),
        ({"average.decay": 0.9, "average.ramp": 1.0}, {"epochs": 200}, "average depends on the length.*init_from="),
    ],
)
def test_a_run_cannot_become_shorter_or_another(tmp_path, held, asked, message):
    config = stage("augment")
    config.update_from_flattened_dict(held)
    config_lib.write(config, tmp_path / "config.json")
    config.update_from_flattened_dict(asked)
    with pytest.raises(UserError, match=message):
        config_lib.check_same(config, tmp_path / "config.json")
