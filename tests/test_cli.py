"""Flags of the commands; a mistyped one is answered by one line on standard error, and no workdir is touched."""

import pytest

from cnn_jax import cli

CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--config=... is missing"),
        ([CONFIG], "--workdir=... is missing"),
        (["--config=configs/nothing.py", "--workdir=W"], "no config file configs/nothing.py"),
        (["--config=nothing", "--workdir=W"], "no stage nothing. The stages are augment, "),
        (["--config=README.md", "--workdir=W"], "not a config file"),
        ([CONFIG, "--workdir=W", "--config.batchsize=3"], "Did you mean config.batch_size?"),
        ([CONFIG, "--workdir=W", "--config.learning_rate=3"], "Did you mean config.optimizer.learning_rate?"),
        ([CONFIG, "--workdir=W", "--config.batch_size=many"], "config.batch_size is 'many'; it must be a whole number"),
        ([CONFIG, "--workdir=W", "--config.batch_size=1.5"], "config.batch_size is '1.5'; it must be a whole number"),
        ([CONFIG, "--workdir=W", "--config.augment.flip=maybe"], "config.augment.flip is 'maybe'; it must be true or"),
        ([CONFIG, "--workdir=W", "--config.model=3"], "config.model is a section"),
        ([CONFIG, "--workdir=W", "--config.epochs=1", "--config.epochs"], "config.epochs is 'true'"),
        ([CONFIG, "--workdir=W", "--config.batch_size=0"], "config.batch_size is 0; it must be"),
        ([CONFIG, "--workdir=W", "--config.model.widths=a"], "config.model.widths is 'a'"),
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


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--config=nothing", "--workdir=W"], "no stage nothing"),
        (["--config=batchnorm", "--workdir=W", "--wrokdir=V"], "Did you mean: workdir"),
        (["--config=batchnorm", "--workdir=W", "--config.batch_size=0"], "config.batch_size is 0"),
    ],
)
def test_most_mistakes_are_answered_without_importing_jax(command, arguments, says):
    code = """
import atexit, sys
atexit.register(lambda: print("jax" in sys.modules))
from cnn_jax import cli, main
cli.run(main.main, required=("config", "workdir"))
"""
    done = command("", *arguments, code=code)
    assert done.returncode == 1 and says in done.stderr
    assert done.stdout == "False\n"


def test_overrides_are_separated_from_flags():
    rest, overrides = cli.split_overrides(
        [
            *(
                "main",
                "--config.a=1",
                "--config=file.py",
                "-config.b",
                "x",
                "--workdir",
                "w",
                "--config.c",
                "--noconfig.d",
            ),
            *("--config.e=p=q", "--config.f", "-3", "--config.a=2", "more", "--", "--config.g=1"),
        ]
    )
    assert rest == ["main", "--config=file.py", "--workdir", "w", "more", "--", "--config.g=1"]
    assert overrides == {"a": "2", "b": "x", "c": "true", "d": "false", "e": "p=q", "f": "-3"}
