"""Copies the configuration, records, times and provenance of a finished run to reports/runs/NAME, to be committed.

    python scripts/publish_run.py WORKDIR [--name=NAME] [--allow-dirty]

NAME is the name of the workdir by default; a run published under that name is replaced. Folders of this machine in
config.json, which do not affect the numbers, are emptied in the copy.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax.errors import UserError  # noqa: E402
from cnn_jax.workdir import provenance  # noqa: E402
from cnn_jax.workdir.layout import CONFIG_FILE, METRICS_FILE, PROVENANCE_FILE, TIMES_FILE  # noqa: E402
from cnn_jax.workdir.records import read_metrics, scores_on_test  # noqa: E402

FILES = (CONFIG_FILE, METRICS_FILE, TIMES_FILE, PROVENANCE_FILE)


def publish(workdir: Path, target: Path, allow_dirty: bool = False) -> None:
    """Copies `FILES` to the folder `target`.

    Raises:
      UserError: the run is not finished, a file or the provenance of its first steps is missing, or, without
        `allow_dirty`, it was trained with uncommitted changes.
    """
    if not scores_on_test(read_metrics(workdir)):
        raise UserError(f"{workdir} is not a finished run: it has no scores on the test split. Train it to the end.")
    missing = [name for name in FILES if not (workdir / name).is_file()]
    segments = provenance.read(workdir)
    if missing or segments[0]["from_step"] > 0:
        lacks = missing[0] if missing else "provenance of its first steps"
        raise UserError(f"{workdir} has no {lacks}: train it again, in another --workdir.")
    if not allow_dirty and any(segment["provenance"]["dirty"] for segment in segments):
        raise UserError(
            f"{workdir} was trained with uncommitted changes: commit them and train it again, or add --allow-dirty."
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(workdir / name, target / name)
    _empty_folders(target / CONFIG_FILE)


def _empty_folders(path: Path) -> None:
    config = json.loads(path.read_text())
    config["data"]["dir"] = config["features"]["dir"] = ""
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Publishes the run and prints its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--name", help="name in reports/runs; that of the workdir by default")
    parser.add_argument("--allow-dirty", action="store_true", help="publish a run trained with uncommitted changes")
    arguments = parser.parse_args()
    target = ROOT / "reports" / "runs" / (arguments.name or arguments.workdir.resolve().name)
    try:
        publish(arguments.workdir, target, arguments.allow_dirty)
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(target)


if __name__ == "__main__":
    main()
