"""Several processes as one run: how they find each other, agree, and learn that one of them is gone."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import DATA, SEED, Placement

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
_FIRST_CONTACT = 300  # seconds that a process waits for the others at the start
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")  # begin errors that other processes do not cause
_MARGIN = 10  # seconds from a lost heartbeat until JAX ends the other processes, at most

# Variables of launchers: one that only what they start has, and the number of processes. JAX reads the rest.
_LAUNCHERS = (("SLURM_STEP_NODELIST", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


def is_alone() -> bool:
    """Whether this is the only process of the run; does not start JAX."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_primary() -> bool:
    """Whether this process writes what only one may write."""
    return is_alone() or jax.process_index() == 0


def launched() -> bool:
    """Whether a launcher started this process as one of several: SLURM, Open MPI, or that of a TPU slice."""
    several = (name in os.environ and int(os.environ.get(count) or 1) > 1 for name, count in _LAUNCHERS)
    return any(several) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, heartbeat: int = HEARTBEAT
) -> Iterator[None]:
    """Makes this process one of several that run the same program; JAX must not have started.

    All but the first print nothing, except for errors. Where one of them fails or is lost, the others end too, within
    `heartbeat` seconds, with one line that names it.

    Args:
      coordinator: HOST:PORT at which the first process listens; None where a launcher says so (SLURM, Open MPI,
        Kubernetes, a TPU slice).
      num_processes: how many there are; None likewise.
      process_id: which one this is, counted from 0; None likewise.
      heartbeat: see `HEARTBEAT`.

    Raises:
      UserError: the others cannot be found.
    """
    jax.config.update("jax_enable_preemption_service", False)  # whose handler of SIGTERM would replace ours
    _filter_standard_error()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_FIRST_CONTACT,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes of this run cannot find each other ({_first_line(error)}). Give each of them "
            "--coordinator=HOST:PORT, --num_processes=N and its own --process_id=0, 1, ...; or, to train alone, "
            "--nodistributed."
        ) from None
    try:
        with contextlib.nullcontext() if is_primary() else _silence():
            yield
    except UserError as error:
        _leave(f"Error: {error}")
    except KeyboardInterrupt:
        _leave("Interrupted.", 130)  # 128 + SIGINT, as in shells
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(_OWN_FAULT):
            # Most likely because another process is gone: JAX ends this one as soon as it knows which.
            time.sleep(heartbeat + _MARGIN)
        _leave(traceback.format_exc())
    jax.distributed.shutdown()


def check_same(what: str, read: Callable[[], object], patience: float = 0) -> None:
    """Checks that all processes read the same, which must be JSON; to be called by all of them.

    Args:
      what: it is, for the message.
      read: returns it.
      patience: seconds until what process 0 has written must be visible to all.

    Raises:
      UserError: they differ.
    """
    if is_alone():
        return
    expected, deadline = multihost_utils.broadcast_one_to_all(_digest(read())), time.monotonic() + patience
    while not np.array_equal(_digest(read()), expected):
        if time.monotonic() > deadline:
            raise UserError(
                f"Process {jax.process_index()} has another {what} than process 0. All processes of a run need the "
                "same command, the same data, and a folder for --workdir that all of their hosts see."
            )
        time.sleep(0.2)


def _digest(value: object) -> np.ndarray:
    text = json.dumps(value, sort_keys=True, default=str)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.int32)


def wait_for_all(name: str) -> None:
    """Waits until all processes are here."""
    if not is_alone():
        multihost_utils.sync_global_devices(name)


class Consensus:
    """Whether any process raises a flag: `consensus(own)` is the same in all of them, which must call it equally often.

    With several processes the answer concerns the flags of the call before, so that nobody waits for steps that are
    still computed. With one it is the flag itself.
    """

    def __init__(self, place: Placement):
        """Compiles when it is first called."""
        self._mesh, self._pending = place.mesh, None
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=place.replicated)

    def __call__(self, own: bool) -> bool:
        """Returns whether any process raised its flag; see the class."""
        if is_alone():
            return own
        sharding = NamedSharding(self._mesh, PartitionSpec((SEED, DATA)))
        flags = jax.make_array_from_callback((self._mesh.size,), sharding, lambda _: np.array([own], np.int32))
        pending, self._pending = self._pending, self._any(flags)
        return pending is not None and bool(jax.device_get(pending))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _filter_standard_error() -> None:
    """Puts cnn_jax/parallel/losses.py between this process and standard error: it explains how JAX ended a process."""
    reader, writer = os.pipe()
    command = [sys.executable, "-S", str(Path(__file__).with_name("losses.py"))]
    subprocess.Popen(command, stdin=reader, stdout=subprocess.DEVNULL, start_new_session=True)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)


def _leave(line: str, status: int = 1) -> None:
    """Ends this process at once; the others notice. An orderly end would wait for them."""
    print(line, file=sys.stderr, flush=True)
    os._exit(status)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
