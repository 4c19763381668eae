"""Manifest of a checkpoint: what a step consists of, so that every later change is noticed.

Orbax itself notices few flipped bits, and no step that was renamed. `manifest.json` is written into the folder of a
step before the folder gets its final name. Earlier versions wrote `sha256.json` after that, so a step of theirs has
none, or half of one, if the process was killed in between.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from cnn_jax.utils import files

MANIFEST = "manifest.json"
_EARLIER = "sha256.json"


@dataclasses.dataclass(frozen=True)
class Step:
    """A saved step, as it was found.

    Attributes:
      number: the name of its folder.
      score: the higher, the better; minus infinity where none was measured, and where it cannot be trusted.
      damage: which file differs from the manifest; None where none does.
      finished: whether it has a manifest. Without one, damage is not noticed.
    """

    number: int
    score: float = -math.inf
    damage: str | None = None
    finished: bool = True

    @property
    def sound(self) -> bool:
        """Whether every file is what was written."""
        return self.finished and self.damage is None


def describe_records(records: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of the file of records, as a manifest has them."""
    return _describe(records.read_bytes() if records.exists() else b"")


def write(folder: Path, step: int, score: float | None, config: dict[str, Any], records: dict[str, Any]) -> None:
    """Writes the manifest of the files in `folder`, which are complete, and of the records up to this step."""
    content = {
        "step": step,
        "score": score,
        "config": _digest(_json(config).encode()),
        "files": _describe_files(folder),
        "records": records,
    }
    (folder / MANIFEST).write_text(_sealed(content))


def records_changed(folder: Path, records: Path) -> bool:
    """Whether the file of records, which only grows, no longer begins as it was when the step in `folder` was saved."""
    expected = (_read(folder / MANIFEST) or {}).get("records")
    if expected is None:  # an earlier version
        return False
    return _describe(records.read_bytes()[: expected["size"]] if records.exists() else b"") != expected


def inspect(directory: Path) -> list[Step]:
    """Returns the steps in `directory` in the order of their numbers, each compared with its manifest."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    found = [_inspect(directory / name) for name in names if name.isascii() and name.isdigit()]
    # Meanwhile, training may have deleted an old one.
    return sorted((s for s in found if (directory / str(s.number)).is_dir()), key=lambda step: step.number)


def best(steps: list[Step]) -> Step:
    """Returns the step with the highest score, and of equals, or where none was scored, the latest."""
    return max(steps, key=lambda step: (step.score, step.number))


def _inspect(folder: Path) -> Step:
    number = int(folder.name)
    try:
        content = _read(folder / MANIFEST)
        if content is None:
            return _inspect_earlier(folder)
        if content["step"] != number:
            return Step(number, damage=f"it is step {content['step']}, renamed")
        damage = _first_difference(content["files"], _describe_files(folder))
    except OSError as error:
        return Step(number, damage=f"{error.filename}: {error.strerror}")
    score = content["score"]
    return Step(number, -math.inf if score is None else score, damage)


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a manifest; None where there is none, or not the one that was written."""
    try:
        text = path.read_text()
        content = files.parse_json(text)
        content.pop("seal")
        return content if text == _sealed(content) else None
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _inspect_earlier(folder: Path) -> Step:
    """Returns a step of an earlier version, whose checksums lack sizes, step and score."""
    number = int(folder.name)
    try:
        checksums = files.read_json(folder / _EARLIER)
    except (FileNotFoundError, ValueError):
        checksums = None
    if not isinstance(checksums, dict) or not checksums:
        return Step(number, finished=False)
    found = {name: file["sha256"] for name, file in _describe_files(folder).items()}
    damage, metrics = _first_difference(checksums, found), folder / "metrics" / "metrics"
    if damage or not metrics.exists():
        return Step(number, damage=damage)
    return Step(number, files.read_json(metrics)["score"])


def _first_difference(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    return f"{differing[0]} is damaged or missing" if differing else None


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and SHA-256 of every file but the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, _EARLIER))
    contents = ((path, path.read_bytes()) for path in paths)
    return {path.relative_to(folder).as_posix(): _describe(content) for path, content in contents}


def _describe(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": _digest(content)}


def _sealed(content: dict[str, Any]) -> str:
    """Returns the text of a manifest, with the digest of its content, so that a change of it is noticed as well."""
    return _json(content | {"seal": _digest(_json(content).encode())}) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
