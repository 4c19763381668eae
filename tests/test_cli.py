"""What a user sees who mistypes something: one line on standard error, no traceback, no workdir touched."""

import pytest

CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--config=... is missing"),
        ([CONFIG], "--workdir=... is missing"),
        (["--config=configs/nothing.py", "--workdir=W"], "no config file configs/nothing.py"),
        (["--config=README.md", "--workdir=W"], "not a config file"),
        ([CONFIG, "--workdir=W", "--config.batchsize=3"], "Did you mean config.batch_size?"),
        ([CONFIG, "--workdir=W", "--config.learning_rate=3"], "Did you mean config.optimizer.learning_rate?"),
        ([CONFIG, "--workdir=W", "--config.batch_size=many"], "config.batch_size is 'many'; it must be a whole number"),
        ([CONFIG, "--workdir=W", "--config.batch_size=1.5"], "config.batch_size is '1.5'; it must be a whole number"),
        ([CONFIG, "--workdir=W", "--config.augment.flip=maybe"], "config.augment.flip is 'maybe'; it must be true or"),
        ([CONFIG, "--workdir=W", "--config.model=3"], "--config.model=3"),
        ([CONFIG, "--workdir=W", "--config.batch_size=0"], "config.batch_size is 0; it must be"),
        ([CONFIG, "--workdir=W", "--config.model.widths=a"], "config.model.widths is ('a',)"),
        ([CONFIG, "--workdir=W", "--wrokdir=V"], "Did you mean: workdir"),
        ([CONFIG, "--workdir=W", "more"], "Unexpected argument 'more'"),
        (["--config.epochs=0", CONFIG, "--workdir=W"], "config.epochs is 0"),
        (["--config.seed=3", "--workdir=W"], "--config=... is missing"),
        ([CONFIG, "--workdir=/dev/null/x"], "Cannot write to --workdir=/dev/null/x"),
    ],
)
def test_one_clear_line(command, tmp_path, arguments, says):
    workdir = tmp_path / "w"
    done = command("main", *(argument.replace("=W", f"={workdir}") for argument in arguments))
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not workdir.exists()
