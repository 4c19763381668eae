"""Download of a file, with a progress bar, a checksum, and resumption after an interruption."""

import hashlib
import threading
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import DownloadColumn

from cnn_jax.errors import UserError
from cnn_jax.utils import progress

CONNECT_SECONDS = 8
_BLOCK = 1 << 20


def fetch(url: str, path: Path, digest: str, remedy: str) -> Path:
    """Downloads `url` to `path`, unless that file exists, and verifies the file in either case.

    An interrupted download leaves `path` + ".partial", from which the next call resumes.

    Args:
      url: the address.
      path: the file to write.
      digest: the expected checksum; see `verify`.
      remedy: the end of the error message: what to do without a network.

    Raises:
      UserError: the server does not respond within `CONNECT_SECONDS`, the file cannot be written, or its checksum
        differs.
    """
    if path.exists():
        verify(path, digest)
        return path
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial)
    except OSError as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise UserError(f"Cannot fetch {url} ({reason}). {remedy}") from None
    try:
        verify(partial, digest)
    except UserError:
        partial.unlink()  # it is complete but wrong, so resuming from it would fail again
        raise
    partial.rename(path)
    return path


def verify(path: Path, digest: str) -> None:
    """Raises a `UserError` unless `path` has the checksum `digest`: a SHA-256 in hexadecimal, or "md5:..."."""
    name, _, expected = digest.rpartition(":")
    name = name or "sha256"
    with path.open("rb") as file:
        # MD5 detects damage here, not attacks; systems that restrict MD5 allow it for that purpose only.
        actual = hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged, truncated or another file: its {name.upper()} is "
            f"{actual[:16]}..., it should be {expected[:16]}.... Remove it and download it again."
        )


def _download(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    try:
        response = _open(url, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the file is already complete; the caller verifies it
            return
        raise
    with response, progress.bar(DownloadColumn()) as bar:
        resumed = response.status == 206
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = int(length) + start if length else None
        task = bar.add_task(f"Downloading {url.rsplit('/', 1)[-1]}", completed=start, total=total)
        with partial.open("ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.advance(task, len(block))
        missing = int(length or 0) - (partial.stat().st_size - start)
        if missing > 0:
            raise OSError(
                f"the connection was closed {missing:,} bytes before the end; run the command again to resume"
            )


def _open(url: str, have: int):
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    result: list = []

    def connect():
        try:
            result.append(urllib.request.urlopen(request, timeout=CONNECT_SECONDS))
        except OSError as error:
            result.append(error)

    # In a thread, because the time-out of urllib does not cover the DNS lookup, which can take a minute.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS + 1)
    if not result:
        raise TimeoutError(f"no response in {CONNECT_SECONDS} seconds")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]
