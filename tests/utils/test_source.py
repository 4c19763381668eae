"""The commit of a checkout, and whether its source differs from it."""

import subprocess
import sys

import pytest
from conftest import ROOT

from cnn_jax.utils.source import revision

UNKNOWN = {"commit": None, "dirty": None}


def git(folder, *arguments):
    command = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit."""
    root = tmp_path / "checkout"
    (root / "package").mkdir(parents=True)
    for name in ("package/__init__.py", "README.md"):
        (root / name).touch()
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=first")
    return root


def test_the_commit_and_whether_the_source_differs_from_it(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    assert revision(checkout) == {"commit": commit, "dirty": False}
    (checkout / "README.md").write_text("changed")
    (checkout / "package" / "untracked.py").touch()
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))  # as a hook of another repository sets it
    assert revision(checkout, ["package"]) == {"commit": commit, "dirty": False}
    assert revision(checkout) == {"commit": commit, "dirty": True}
    (checkout / "package" / "__init__.py").write_text("changed")
    assert revision(checkout, ["package"]) == {"commit": commit, "dirty": True}


def test_a_worktree_is_a_checkout(checkout):
    worktree = checkout.with_name("worktree")
    git(checkout, "worktree", "add", "--quiet", "--detach", str(worktree))
    assert revision(worktree) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}


def test_a_surrounding_repository_is_ignored(checkout):
    inside = checkout / "site-packages"
    inside.mkdir()
    assert revision(inside) == UNKNOWN
    (inside / ".git").mkdir()  # not a repository, so git alone would search the parent folders
    assert revision(inside) == UNKNOWN


def test_failures_of_git_are_no_errors(checkout, tmp_path, monkeypatch):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    monkeypatch.setenv("PATH", str(slow.parent))
    assert revision(checkout) == UNKNOWN
    slow.write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    slow.chmod(0o755)
    monkeypatch.setattr("cnn_jax.utils.source.GIT_TIMEOUT", 0.05)
    assert revision(checkout) == UNKNOWN


def test_needs_no_jax():
    code = "import sys; from cnn_jax.utils import source; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
