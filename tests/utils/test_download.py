"""Downloads from a local server that closes the connection, resumes, sends wrong content, or does not exist."""

import hashlib
import http.server
import threading

import pytest

from cnn_jax.errors import UserError
from cnn_jax.utils import download

CONTENT = bytes(range(256)) * 40_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves CONTENT with ranges; `server.cut = n` closes the connection after n bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Range")
            start = int(given.removeprefix("bytes=").removesuffix("-")) if given else 0
            self.server.starts.append(start)
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if given else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : self.server.cut])

        def log_message(self, *_):
            pass

    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.cut, instance.starts = None, []
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    instance.url = f"http://127.0.0.1:{instance.server_port}/file.bin"
    yield instance
    instance.shutdown()
    instance.server_close()


def test_fetches_verifies_and_fetches_once(server, tmp_path):
    path = tmp_path / "deep" / "file.bin"
    for _ in range(2):
        assert download.fetch(server.url, path, SHA256, "") == path
    assert path.read_bytes() == CONTENT
    assert server.starts == [0]
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


def test_resumes_after_an_interruption(server, tmp_path):
    path = tmp_path / "file.bin"
    server.cut = 3_000_000
    with pytest.raises(UserError, match=r"was closed .* resume"):
        download.fetch(server.url, path, SHA256, "")
    assert not path.exists()
    have = (tmp_path / "file.bin.partial").stat().st_size
    assert 0 < have <= 3_000_000
    server.cut = None
    download.fetch(server.url, path, SHA256, "")
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, have]


def test_a_complete_partial_file_is_used(server, tmp_path):
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "file.bin", SHA256, "")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_content_is_removed(server, tmp_path):
    with pytest.raises(UserError, match="damaged, truncated or another file"):
        download.fetch(server.url, tmp_path / "file.bin", "0" * 64, "")
    assert not list(tmp_path.iterdir())


def test_md5(server, tmp_path):
    path = tmp_path / "file.bin"
    with pytest.raises(UserError, match=r"its MD5 is [0-9a-f]{16}\.\.\., it should be 0{16}\.\.\."):
        download.fetch(server.url, path, f"md5:{'0' * 32}", "")
    assert not path.exists()
    download.fetch(server.url, path, f"md5:{hashlib.md5(CONTENT).hexdigest()}", "")
    assert path.read_bytes() == CONTENT


def test_an_existing_file_is_verified(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged, truncated or another file: its SHA256 is"):
        download.fetch(server.url, path, SHA256, "")
    assert path.exists()  # it may be the user's own
    assert server.starts == []


def test_no_place_for_the_file(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot fetch .*file.* Do this\."):
        download.fetch(server.url, tmp_path / "file" / "file.bin", SHA256, "Do this.")


def test_no_server_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"Cannot fetch http://127\.0\.0\.1:9/file\.bin .*refused.* Do this\."):
        download.fetch("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", SHA256, "Do this.")
