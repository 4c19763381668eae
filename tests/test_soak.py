"""The soak of scripts/soak.py, for about a minute; its report of many more kills is reports/soak.json."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("kills", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_runs_end_as_undisturbed_ones(tmp_path, kills):
    command = [sys.executable, "scripts/soak.py", f"--kills={kills}", "--seed=1", f"--folder={tmp_path}"]
    command += ["--stages=augment", f"--output={tmp_path}/soak.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["kills"] >= kills and report["runs_compared"] and report["bytes_compared"] and not report["failures"]
