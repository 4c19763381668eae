"""Loads the page with visitors who upload pictures, half of them hostile, and records the server's memory.

    python scripts/page_load.py --workdir=runs/quickstart --output=reports/page_load.json

Visitors are pages of a headless Chromium, each with a session of its own. Every picture carries its visitor's name, and
no visitor may see another's. After the last upload all leave, and the memory is read again when the server has dropped
their sessions.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hostile  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402

ANSWERS = "figcaption, [data-testid=stAlert]"
AFTER = 60  # seconds after the last visitor left


def main() -> None:
    """Runs the load and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--uploads", type=int, default=200)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cnn_jax.page", f"--workdir={arguments.workdir}", f"--port={port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as server:
        try:
            found = load(server, f"http://127.0.0.1:{port}", arguments.visitors, arguments.uploads)
        finally:
            server.terminate()
            log = server.communicate(timeout=30)[0].decode()
    found |= {"tracebacks": log.count("Traceback"), "listens_on_network": "Network URL" in log}
    head = {"command": "python scripts/page_load.py", **revision(ROOT, ("cnn_jax", "configs"))}
    with files.replacing(arguments.output) as file:
        file.write(json.dumps(head | found, indent=1) + "\n")
    print(json.dumps(found))


def load(server: subprocess.Popen, address: str, visitors: int, uploads: int) -> dict:
    """Returns what came of the uploads, and the memory of the server in MB."""
    while True:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health").close()
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.5)
    bad = [(name, content) for name, content, kind in hostile.files() if kind == hostile.BAD]
    noise, photo = random.Random(0), photograph()
    shown = refused = foreign = 0
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu"]
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        pages = [chromium.new_context().new_page() for _ in range(visitors)]
        for page in pages:
            page.set_default_timeout(120_000)
            page.goto(address)
            page.get_by_text("Or try some of these").wait_for()
        idle = memory(server.pid)
        start, peak = time.perf_counter(), idle
        for number in range(uploads):
            page = pages[number % visitors]
            name = f"visitor{number % visitors}-{number}"
            if number // visitors % 2:
                odd, content = noise.choice(bad)
                name += f"-{odd}"
            else:
                name, content = f"{name}.jpg", photo
            upload(page, name, content)
            texts = page.locator(ANSWERS).all_inner_texts()
            seen = set(re.findall(r"visitor(\d+)-", " ".join(texts)))
            foreign += bool(seen - {str(number % visitors)})
            alert = (
                any(name in text for text in texts[:1]) and page.locator("[data-testid=stAlert]", has_text=name).count()
            )
            refused, shown = refused + bool(alert), shown + (not alert)
            peak = max(peak, memory(server.pid))
            print(f"{number + 1} of {uploads}: {memory(server.pid)} MB", end="\r", flush=True)
        seconds = time.perf_counter() - start
        chromium.close()
    time.sleep(AFTER)
    with urllib.request.urlopen(f"{address}/_stcore/health") as answer:
        healthy = answer.status == 200 and server.poll() is None
    return {
        "visitors": visitors,
        "uploads": uploads,
        "megabytes_per_photograph": round(len(photo) / 2**20, 1),
        "seconds": round(seconds),
        "classified": shown,
        "refused": refused,
        "pictures_of_other_visitors": foreign,
        "memory_mb": {
            "with_all_visitors_idle": idle,
            "peak": max(peak, memory(server.pid, "VmHWM")),
            "after_they_left": memory(server.pid),
        },
        "serves_afterwards": healthy,
    }


def photograph() -> bytes:
    """Returns a noisy JPEG of 12 megapixels and some 5 MB, as telephones take."""
    coarse = np.random.default_rng(0).integers(0, 256, (1000, 750, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((4000, 3000)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def upload(page: Page, name: str, content: bytes) -> None:
    """Uploads a file and waits until the page names it."""
    # The field that is being replaced by an empty one is there for a moment longer.
    page.wait_for_function("document.querySelectorAll('input[type=file]').length == 1")
    page.locator("input[type=file]").set_input_files([{"name": name, "mimeType": "image/jpeg", "buffer": content}])
    page.locator(ANSWERS, has_text=name).first.wait_for()


def memory(pid: int, field: str = "VmRSS") -> int:
    """Returns the resident memory of a process in MB, or its largest so far ("VmHWM")."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) >> 10


if __name__ == "__main__":
    main()
