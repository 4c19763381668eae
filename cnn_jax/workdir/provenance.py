"""Provenance of a run: the source, versions, flags and hardware that computed its numbers."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from cnn_jax import runtime
from cnn_jax.errors import UserError
from cnn_jax.keys import flatten
from cnn_jax.parallel.placement import describe_devices
from cnn_jax.utils import files
from cnn_jax.utils.source import ROOT, revision
from cnn_jax.workdir.layout import PROVENANCE_FILE

SOURCE = ("commit", "dirty", "versions.cnn_jax")  # the fields that identify the code

FILES = "files "  # begins a fingerprint of files that were not decoded; others are of pixels

_PACKAGES = ("cnn_jax", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "ml_collections")
# All other fields may change numbers; even the number of cores does, because XLA divides sums among them.
_RECORDED_ONLY = (
    "versions.python",
    "versions.orbax-checkpoint",
    "versions.ml_collections",
    "platform",
    "environment.JAX_PLATFORMS",  # recorded as `devices`
)


def collect(layout: dict[str, str | None] | None = None, data: str | None = None) -> dict[str, Any]:
    """Returns the provenance of the computations of this process, as JSON.

    Args:
      layout: how the steps and seeds of the run are executed (`Placement.layout`).
      data: the fingerprint of the images and labels.
    """
    return {
        **revision(ROOT, ("cnn_jax", "configs")),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "environment": _environment(),
        "processor": runtime.processor(),
        "vector_extensions": runtime.vector_extensions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "devices": describe_devices(),
        "layout": layout,
        "data": data,
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the differing fields that may change numbers: `{"versions.jax": ("0.10.2", "0.12.0")}`.

    A field that is missing counts as None.
    """
    old, new = flatten(before), flatten(after)
    names = [name for name in {**old, **new} if name not in _RECORDED_ONLY]
    differing = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    if "data" in differing and not other_images(*differing["data"]):
        del differing["data"]
    return differing


def other_images(before: str | None, after: str | None) -> bool:
    """Returns whether two fingerprints show that the images differ; one of files says nothing about one of pixels."""
    return before != after and (before or "").startswith(FILES) == (after or "").startswith(FILES)


def describe(differing: dict[str, tuple[Any, Any]]) -> str:
    """Returns the result of `differences` as part of a sentence: "jax 0.12.0 (was 0.10.2), cores 1 (was 2)"."""

    def show(name: str, value: Any) -> str:
        return str(value)[:7] if name == "commit" and value else str(value)

    return ", ".join(
        f"{name.removeprefix('versions.').removeprefix('environment.')} {show(name, new)} (was {show(name, old)})"
        for name, (old, new) in differing.items()
    )


def record(
    workdir: Path, step: int, provenance: dict[str, Any], origin: dict[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Records the provenance of the steps of a run from `step` on.

    The file is a list of segments, `{"from_step": step, "provenance": {...}}`, in order. A segment is added only if the
    provenance differs from the previous one, or if there is an `origin`. Segments that begin at `step` or later are
    dropped, because their steps are computed again.

    Args:
      workdir: of the run.
      step: the first of the steps.
      provenance: of the steps (see `collect`).
      origin: JSON: what the steps continue, such as the run that this one was started from, or a shorter run.

    Returns:
      The `differences` from the provenance of the previous step.

    Raises:
      UserError: the file is damaged.
    """
    held = read(workdir)
    segments = [segment for segment in held if segment["from_step"] < step]
    before = segments[-1]["provenance"] if segments else None
    # A process that was stopped before its first checkpoint may have noted it.
    origin = origin or next((s["origin"] for s in held if s["from_step"] == step and "origin" in s), None)
    if before != provenance or origin:
        segments.append({"from_step": step, "provenance": provenance} | ({"origin": origin} if origin else {}))
    with files.replacing(workdir / PROVENANCE_FILE) as file:
        file.write(json.dumps(segments, indent=1) + "\n")
    return differences(before, provenance) if before else {}


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the segments of a run (see `record`); an empty list if none were recorded.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / PROVENANCE_FILE
    try:
        segments = files.read_json(path) if path.exists() else []
        return [
            {"from_step": int(each["from_step"]), "provenance": dict(each["provenance"])}
            | ({"origin": dict(each["origin"])} if "origin" in each else {})
            for each in segments
        ]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged: restore it, or delete it to resume without its records.") from None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> dict[str, str]:
    """Returns the environment variables that affect what XLA compiles, except those of the compilation cache."""
    names = [n for n in os.environ if n.startswith("JAX_") and "CACHE" not in n]
    names += ["XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"]
    return {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}
