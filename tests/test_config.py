import json

import pytest
from conftest import ROOT, stage

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError

STAGES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_valid_and_explains_itself(name):
    config_lib.validate(stage(name))
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert text.startswith('"""')
    if name != "base":
        assert f"--config=configs/{name}.py" in text


@pytest.mark.parametrize(
    "before, after, keys",
    [
        ("base", "basic", {"model.convs_per_block", "model.hidden"}),
        ("basic", "baseline", {"model.convs_per_block", "model.hidden"}),
        ("baseline", "batchnorm", {"model.batch_norm"}),
        ("batchnorm", "dropout", {"model.dropout"}),
        ("dropout", "dropout_scheduled", {"model.dropout"}),
        ("dropout_scheduled", "augment", {"augment.flip", "augment.shift", "epochs"}),
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


def test_every_rule_has_a_default_and_every_default_a_rule():
    rules = config_lib.rules_of("cnn")
    assert set(config_lib.flatten(stage("base"))) == set(rules)


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
        ("optimizer.name", "adamw"),
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
    config.finetune.epochs = 1
    with pytest.raises(UserError, match=r"config\.finetune\.epochs is 0 there and 1 here"):
        config_lib.check_same(config, path)


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
    (tmp_path / "broken.py").write_text("from configs import baseline\ndef get_config():\n  return baseline.nothing")
    with pytest.raises(UserError, match=r"broken.py fails: AttributeError"):
        config_lib.load(tmp_path / "broken.py")
    (tmp_path / "typo.py").write_text(
        "from configs import baseline\ndef get_config():\n  c = baseline.get_config()\n  c.epoch = 3\n  return c"
    )
    with pytest.raises(UserError, match=r"typo.py fails.*epoch"):
        config_lib.load(tmp_path / "typo.py")


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
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        config_lib.check_same(config, path)
