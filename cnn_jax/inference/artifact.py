"""Single-file exported model: a serialized `jax.export` program with weights, preprocessing and a JSON header.

The file has three lines of text (`head -3 FILE` shows them), followed by the program:

    cnn_jax export
    SHA-256 of the next line, in hexadecimal
    JSON: "format", "class_names", "input_size", "preprocessing", "config", "step", "jax", "payload_sha256", ...;
        of a run with several seeds also "seed": the index of the exported one, or "ensemble"
    `jax.export` payload: uint8 [batch, height, width, 3] to float32 log-probabilities [batch, classes]
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
    try:
        with files.replacing(path, "wb") as file:
            file.writelines(content)
    except OSError as error:
        raise UserError(
            f"Cannot write --output={path} ({error.strerror}): free space there, or choose another file."
        ) from None
    return header


def read(path: Path) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Reads an exported model.

    Returns:
      The header, and the exported function, compiled per batch size.

    Raises:
      UserError: the file is damaged or not an exported model, or this JAX or cnn_jax cannot read its version.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            payload = file.read()
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}).") from None
    if len(payload) < header["payload_bytes"]:
        raise UserError(
            f"{path} is truncated: it has {len(payload):,} of the program's {header['payload_bytes']:,} bytes. "
            f"{_AGAIN.format(path=path)}"
        )
    if hashlib.sha256(payload).hexdigest() != header["payload_sha256"]:
        raise UserError(f"{path} is damaged: the checksum of its program differs. {_AGAIN.format(path=path)}")
    return header, _program(path, header, payload)


def _read_header(path: Path, file: Any) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UserError(
            f"{path} is not an exported model. Export one: python -m cnn_jax.export --workdir=... --output=FILE"
        )
    checksum, line = file.readline(65), file.readline(_LONGEST_LINE)
    if not line.endswith(b"\n") or hashlib.sha256(line[:-1]).hexdigest().encode() + b"\n" != checksum:
        raise UserError(f"{path} is damaged: the checksum of its header differs. {_AGAIN.format(path=path)}")
    header = json.loads(line)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')}, and this cnn_jax reads format {FORMAT}. Update cnn_jax, or "
            "export the workdir again with this version."
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
            "or use the workdir instead."
        )
    try:
        program = jax.jit(export.deserialize(bytearray(payload)).call)
        # Lowering fails if this JAX lacks an operation, and takes a fraction of the time of compiling.
        program.lower(jax.ShapeDtypeStruct((1, *header["input_size"], 3), jnp.uint8))
    except Exception as error:  # the checksum matched, so the versions differ; JAX has many errors for this
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} was exported by jax {header['jax']}, and jax {jax.__version__} cannot read it ({reason}). Install "
            f"jax {header['jax']}, or export the workdir again with jax {jax.__version__}."
        ) from None
    return program
