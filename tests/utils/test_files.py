"""Atomic writes: the whole file, or no change."""

import os
import stat

import pytest

from cnn_jax.utils import files


@pytest.mark.parametrize("mode, content, on_disk", [("w", "ä\n", b"\xc3\xa4\n"), ("wb", b"\x00\xff", b"\x00\xff")])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, mode, content, on_disk):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with files.replacing(path, mode) as file:
        file.write(content)
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == on_disk
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, seen, fsync = tmp_path / "file", [], os.fsync

    def synced(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    with files.replacing(path) as file:
        file.write("content")
    assert seen == [(False, False), (True, True)]  # the file, then the folder with its new name


def test_a_failure_leaves_the_folder_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write("half of ")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "none" / "file"):
        pass


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    for read in (lambda: files.read_json(path), lambda: files.parse_json(path.read_text())):
        with pytest.raises(ValueError, match="nested too deeply"):
            read()
    path.write_text('{"a": [1, null]}')
    assert files.read_json(path) == {"a": [1, None]}
