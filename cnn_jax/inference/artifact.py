"""Single-file exported model: a serialized `jax.export` program with weights, preprocessing and a JSON header.

The file has three lines of text (`head -3 FILE` shows them), followed by the program:

    cnn_jax export
    SHA-256 of the next line, in hexadecimal
    JSON: "format", "class_names", "input_size", "preprocessing", "config", "step", "jax", "payload_sha256", ...;
        of a run with several seeds also "seed": the index of the exported one, or "ensemble"; of an evaluated one
        "calibration": the temperature that predict and the page apply, and the threshold (see `calibration.py`)
    `jax.export` payload: uint8 [batch, height, width, 3] to float32 log-probabilities [batch, classes]
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from cnn_jax.errors import UserError
from cnn_jax.inference import header as header_lib
from cnn_jax.inference import inspection
from cnn_jax.inference.header import is_text, is_whole
from cnn_jax.utils import files, text

FORMAT = 1
PLATFORMS = ("cpu", "cuda")

_MAGIC = b"cnn_jax export\n"
_KEYS: dict[str, Callable[[Any], bool]] = {
    "jax": lambda value: is_text(value, 50),
    "platforms": lambda value: isinstance(value, list) and len(value) < 10 and all(is_text(each, 20) for each in value),
    "payload_bytes": lambda value: is_whole(value, 1, _LARGEST),
    "payload_sha256": lambda value: is_text(value, 64),
}
_LARGEST = 2**33  # bytes of a program
_AGAIN = "Export it again from its workdir: python -m cnn_jax.export --workdir=... --output={path}"


def write(path: Path, log_probabilities: Callable[[Any], Any], metadata: dict[str, Any], step: int) -> dict[str, Any]:
    """Exports a function for any batch size and all of `PLATFORMS`; the file is written atomically.

    Args:
      path: the file to write or replace.
      log_probabilities: a function from uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`, jitted or not.
      metadata: what the run recorded: "class_names", "input_size", "preprocessing", "config", and "seed" if it has
        several.
      step: the training step of the parameters.

    Returns:
      The header.

    Raises:
      UserError: the file cannot be written.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *metadata["input_size"], 3), jnp.uint8)
    program = export.export(jax.jit(log_probabilities), platforms=PLATFORMS)(images)  # pyright: ignore[reportArgumentType]
    payload = bytes(program.serialize())
    header = metadata | {
        "format": FORMAT,
        "step": step,
        "jax": jax.__version__,
        "calling_convention": program.calling_convention_version,
        "platforms": list(PLATFORMS),
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    line = json.dumps(header).encode()
    content = [_MAGIC, hashlib.sha256(line).hexdigest().encode(), b"\n", line, b"\n", payload]
    files.write_output(path, content)
    return header


def read(path: Path, trust: bool = False) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Reads an exported model.

    Args:
      path: the file.
      trust: run the program without the checks of `cnn_jax.inference.inspection`.

    Returns:
      The header, and the exported function, compiled per batch size.

    Raises:
      UserError: the file is damaged or not an exported model, this JAX or cnn_jax cannot read its version, or its
        program is not one that is run without `trust`.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            payload = file.read(header["payload_bytes"] + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}).") from None
    if len(payload) < header["payload_bytes"]:
        raise UserError(
            f"{path} is truncated: it has {len(payload):,} of the program's {header['payload_bytes']:,} bytes. "
            f"{_AGAIN.format(path=path)}"
        )
    if hashlib.sha256(payload).hexdigest() != header["payload_sha256"]:
        raise UserError(f"{path} is damaged: the checksum of its program differs. {_AGAIN.format(path=path)}")
    return header, _program(path, header, payload, trust)


def _read_header(path: Path, file: Any) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UserError(
            f"{path} is not an exported model. Export one: python -m cnn_jax.export --workdir=... --output=FILE"
        )
    checksum, line = file.readline(65), file.readline(header_lib.LONGEST)
    if not line.endswith(b"\n") or hashlib.sha256(line[:-1]).hexdigest().encode() + b"\n" != checksum:
        raise UserError(f"{path} is damaged: the checksum of its header differs. {_AGAIN.format(path=path)}")
    return header_lib.parse(line, path, FORMAT, _KEYS)


def _program(path: Path, header: dict[str, Any], payload: bytes, trust: bool) -> Callable[[Any], Any]:
    backend = jax.default_backend()
    platform = {"gpu": "cuda"}.get(backend, backend)
    if platform not in header["platforms"]:
        named = " and ".join(map(text.printable, header["platforms"]))
        raise UserError(
            f"{path} runs on {named}, and JAX uses {backend} here: set JAX_PLATFORMS=cpu, or use the workdir instead."
        )
    try:
        exported = export.deserialize(bytearray(payload))
        if not trust:
            inspection.check(exported, header["input_size"], len(header["class_names"]))
        program = jax.jit(exported.call)
        # Lowering fails if this JAX lacks an operation, and takes a fraction of the time of compiling.
        program.lower(_images(1, header["input_size"]))
    except inspection.Refused as refusal:
        raise UserError(
            f"{path} is not run: {refusal}. Networks of cnn_jax do not need this. If you trust whoever made the file, "
            "pass --trust (in Python, trust=True): its program then runs unchecked."
        ) from None
    except Exception as error:  # the checksum matched, so the versions differ; JAX has many errors for this
        reason = text.printable(" ".join(str(error).split())[:200])
        made = text.printable(header["jax"])
        raise UserError(
            f"{path} was exported by jax {made}, and jax {jax.__version__} cannot read it ({reason}). Install "
            f"jax {made}, or export the workdir again with jax {jax.__version__}."
        ) from None
    compiled: dict[int, Callable[[Any], Any]] = {}

    def run(images: Any) -> Any:
        batch = images.shape[0]
        if batch not in compiled:
            executable = program.lower(_images(batch, header["input_size"])).compile()
            if not trust:
                _check_memory(path, executable, batch)
            compiled[batch] = executable
        return compiled[batch](images)

    return run


def _check_memory(path: Path, executable: Any, batch: int) -> None:
    """Refuses a program that would allocate far more than a network does."""
    analysis = executable.memory_analysis()
    if (
        analysis is not None
        and analysis.temp_size_in_bytes > inspection.MOST_BYTES + batch * inspection.BYTES_PER_IMAGE
    ):
        raise UserError(
            f"{path} is not run: its program takes {analysis.temp_size_in_bytes >> 20:,} MiB for "
            f"{text.count(batch, 'image')}. If you trust whoever made the file, pass --trust (in Python, trust=True)."
        )


def _images(batch: int, size: Sequence[int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
