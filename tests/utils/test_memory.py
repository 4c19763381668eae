"""How much memory a process may use."""

import subprocess
import sys

import pytest

from cnn_jax.utils import memory


def test_no_more_than_the_machine_has():
    assert 0 < memory.total_memory() <= memory._of_machine()


def test_the_limit_of_a_process():
    code = f"""
import resource
from cnn_jax.utils.memory import total_memory
resource.setrlimit(resource.RLIMIT_AS, ({2**30}, {2**30}))
print(total_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 2**30


@pytest.mark.parametrize("name", ["memory/memory.limit_in_bytes", "memory.max"])
def test_the_limit_of_a_container(tmp_path, monkeypatch, name):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text("12345\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_own_group", lambda: None if "/" in name else "some/group")
    assert memory.total_memory() == 12345
    (tmp_path / name).write_text("max\n")
    assert memory.total_memory() > 12345
