"""Trains a stage: python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/bn [--config.KEY=VALUE ...].

The same command resumes where the run was stopped, and ends with the same numbers.
"""

import contextlib
from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax import config as config_lib
from cnn_jax.errors import UserError

_CONFIG = cli.define_config()
flags.declare_key_flag("config")  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the configuration.")
_FIND = flags.DEFINE_bool(
    "find_learning_rate",
    False,
    "Do not train: try learning rates in a short run, write a figure and a suggestion to the workdir.",
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Only print the configuration, as config.json has it.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Train with the other processes that the launcher started (SLURM, Open MPI, Kubernetes, a TPU slice). By default "
    "they are recognised, except on Kubernetes; --nodistributed makes each process a run of its own.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Without a launcher: HOST:PORT at which process 0 of several listens."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Without a launcher: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Without a launcher: which process this is, counted from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 30, "Seconds without a sign of life after which a process is lost, and the others end."
)


def main() -> int:
    """Trains, and returns the exit status."""
    if _PRINT_CONFIG.value:
        config_lib.validate(_CONFIG.value)
        print(config_lib.as_json(_CONFIG.value), end="")
        return 0
    workdir = cli.require("workdir")
    if _FIND.value:
        from cnn_jax.report.range_test import find_learning_rate

        return find_learning_rate(_CONFIG.value, Path(workdir).expanduser())
    with _joined():
        from cnn_jax.training.loop import train  # after parsing: a mistyped flag is reported without loading JAX

        return train(_CONFIG.value, workdir)


def _joined() -> contextlib.AbstractContextManager:
    """Joins the other processes, where there are any."""
    given = {"coordinator": _COORDINATOR, "num_processes": _NUM_PROCESSES, "process_id": _PROCESS_ID}
    missing = [name for name, flag in given.items() if flag.value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"--{missing[0]}=... is missing: --coordinator, --num_processes and --process_id go together.")
    if missing and _DISTRIBUTED.value is False:
        return contextlib.nullcontext()
    from cnn_jax.parallel import distributed

    if missing and not _DISTRIBUTED.value and not distributed.launched():
        return contextlib.nullcontext()
    return distributed.joined(*(flag.value for flag in given.values()), heartbeat=_HEARTBEAT.value)


if __name__ == "__main__":
    cli.run(main, required=("config",))
