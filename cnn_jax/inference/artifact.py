"""One file that answers: the network with its weights as a program, its preprocessing, and where it came from.

A file is three lines of text, to be read with `head -3`, and the program:

    cnn_jax export
    SHA-256 of the next line, in hexadecimal
    JSON: "format", "class_names", "input_size", "preprocessing", "config", "step", "jax", "payload_sha256", ...
    what `jax.export` serialized: uint8 [batch, height, width, 3] to float32 log-probabilities [batch, classes]
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from cnn_jax.errors import UserError
from cnn_jax.utils import files

FORMAT = 1
PLATFORMS = ("cpu", "cuda")

_MAGIC = b"cnn_jax export\n"
_LONGEST_LINE = 2**26
_KEYS = {
    "class_names",
    "input_size",
    "preprocessing",
    "config",
    "step",
    "jax",
    "platforms",
    "payload_bytes",
    "payload_sha256",
}
_AGAIN = "Make it again from its workdir with python -m cnn_jax.export --workdir=... --output={path}"


def write(path: Path, log_probabilities: Callable[[Any], Any], metadata: dict[str, Any], step: int) -> dict[str, Any]:
    """Exports a function for any batch size and every platform of `PLATFORMS`; the file is complete or not there.

    Args:
      path: the file; one that is there already is replaced.
      log_probabilities: uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`, compiled by `jax.jit`.
      metadata: what the run recorded: "class_names", "input_size", "preprocessing", "config".
      step: of the parameters.

    Returns:
      The header.

    Raises:
      UserError: the file cannot be written.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *metadata["input_size"], 3), jnp.uint8)
    program = export.export(log_probabilities, platforms=PLATFORMS)(images)
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
    try:
        with files.replacing(path, "wb") as file:
            file.writelines(content)
    except OSError as error:
        raise UserError(
            f"Cannot write --output={path} ({error.strerror}): free space there, or name another."
        ) from None
    return header


def read(path: Path) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Reads a file that `write` made.

    Returns:
      The header, and the function that was exported, compiled for each batch size that it meets.

    Raises:
      UserError: the file is damaged, is something else, or was made by a version that is too new or too old.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            payload = file.read()
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}).") from None
    if len(payload) < header["payload_bytes"]:
        raise UserError(
            f"{path} is cut short: {len(payload):,} of {header['payload_bytes']:,} bytes of the program are there. "
            f"{_AGAIN.format(path=path)}"
        )
    if hashlib.sha256(payload).hexdigest() != header["payload_sha256"]:
        raise UserError(f"{path} is damaged: its program is not what was written. {_AGAIN.format(path=path)}")
    return header, _program(path, header, payload)


def _read_header(path: Path, file: Any) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UserError(
            f"{path} is not an exported model. Make one: python -m cnn_jax.export --workdir=... --output=FILE"
        )
    checksum, line = file.readline(65), file.readline(_LONGEST_LINE)
    if not line.endswith(b"\n") or hashlib.sha256(line[:-1]).hexdigest().encode() + b"\n" != checksum:
        raise UserError(f"{path} is damaged: its header is not what was written. {_AGAIN.format(path=path)}")
    header = json.loads(line)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')}, and this cnn_jax reads format {FORMAT}. Update cnn_jax, or "
            "export the workdir anew with this one."
        )
    if not header.keys() >= _KEYS:
        raise UserError(f"{path} lacks {', '.join(sorted(_KEYS - header.keys()))}. {_AGAIN.format(path=path)}")
    return header


def _program(path: Path, header: dict[str, Any], payload: bytes) -> Callable[[Any], Any]:
    backend = jax.default_backend()
    platform = {"gpu": "cuda"}.get(backend, backend)
    if platform not in header["platforms"]:
        raise UserError(
            f"{path} runs on {' and '.join(header['platforms'])}, and JAX uses {backend} here: set JAX_PLATFORMS=cpu, "
            "or answer from the workdir."
        )
    try:
        program = jax.jit(export.deserialize(bytearray(payload)).call)
        # Lowering is what meets an operation that this JAX does not know, and takes a fraction of compiling.
        program.lower(jax.ShapeDtypeStruct((1, *header["input_size"], 3), jnp.uint8))
    except Exception as error:  # the checksum is right, so the versions do not fit; JAX says it in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} was exported by jax {header['jax']}, and jax {jax.__version__} cannot read it ({reason}). Install "
            f"jax {header['jax']}, or export the workdir anew with jax {jax.__version__}."
        ) from None
    return program
