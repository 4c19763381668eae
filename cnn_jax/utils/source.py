"""The commit of a checkout. Imports nothing of JAX, so that scripts can ask before they start a process that does."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of a clone of this project
GIT_TIMEOUT = 2.0  # seconds


def revision(root: Path, paths: Sequence[str] = ()) -> dict[str, str | bool | None]:
    """Returns the commit that is checked out in `root`, and whether tracked files differ from it.

    Args:
      root: the top of a git checkout or worktree.
      paths: the files and folders, relative to `root`, whose changes count; all where empty.

    Returns:
      `{"commit": 40 hexadecimal digits, "dirty": bool}`; both None where `root` is not the top of a checkout, where it
      has no commit, or where git is missing, fails or takes longer than `GIT_TIMEOUT`.
    """
    unknown: dict[str, str | bool | None] = {"commit": None, "dirty": None}
    git = root / ".git"
    if not git.exists():  # a folder, or in a worktree a file
        return unknown
    # Naming the repository keeps git from searching parent folders, and from using the variables that hooks set.
    command = ["git", "--no-optional-locks", f"--git-dir={git}", f"--work-tree={root}", "status"]
    command += ["--porcelain=v2", "--branch", "--untracked-files=no", "--", *paths]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=GIT_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return unknown
    headers = [line for line in done.stdout.splitlines() if line.startswith("#")]
    commits = [line.split()[-1] for line in headers if line.startswith("# branch.oid ")]
    if done.returncode or not commits or commits[0] == "(initial)":
        return unknown
    return {"commit": commits[0], "dirty": len(headers) < len(done.stdout.splitlines())}
