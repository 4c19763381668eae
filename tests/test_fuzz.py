"""A few seconds of scripts/fuzz.py; its report of many more cases is reports/fuzz.json."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "readers, count", [("image,pth,evaluation", 60), ("keras_legacy,keras_v3", 20), ("jaxexport", 25)]
)
def test_no_reader_fails_on_hostile_files(tmp_path, readers, count):
    output = tmp_path / "fuzz.json"
    command = [sys.executable, "scripts/fuzz.py", f"--count={count}", f"--readers={readers}", f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(output.read_text())["readers"]
    assert done.returncode == 0, done.stdout
    for name, result in found.items():
        if "unavailable" not in result:  # an extra that is not installed
            assert result["read"] >= 1 and result["refused"] >= count / 4, (name, result)
            assert not result["failures"]
