"""Hostile files: one line per error, no traceback, right counts, bounded memory, no wrong pixels."""

import contextlib
import json
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import hostile
import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import images
from cnn_jax.errors import UserError


@pytest.fixture(scope="module")
def files():
    return list(hostile.files())


def test_each_is_read_or_refused_in_one_line(files):
    assert len(files) > 300
    for name, content, expected in files:
        try:
            pixels = images.read(content, 32, 32, ("crop", "stretch", "pad")[len(content) % 3], name)
        except UserError as error:
            assert expected != hostile.GOOD, str(error)
            assert str(error).startswith(f"{name}: ") and len(str(error).splitlines()) == 1
            assert len(str(error)) < 400, str(error)
        else:
            assert expected != hostile.BAD, f"{name} was read"
            assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


def test_cut_short_anywhere_is_refused_or_harmless():
    """If a truncated file is decoded at all, its pixels are those of the whole file."""
    for suffix, content in hostile.originals().items():
        whole = np.asarray(images.decode(content))
        for cut in range(0, len(content), 1 if len(content) < 1500 else 7):
            try:
                part = np.asarray(images.decode(content[:cut]))
            except UserError:
                continue
            np.testing.assert_array_equal(part, whole, err_msg=f"{suffix} cut to {cut} bytes")


def test_a_flipped_bit_of_a_png_is_noticed():
    """PNG has checksums; other formats for photographs have none."""
    content, noise = hostile.originals()["png"], random.Random(0)
    whole = np.asarray(images.decode(content))
    for _ in range(150):
        flipped = bytearray(content)
        flipped[noise.randrange(len(flipped))] ^= 1 << noise.randrange(8)
        try:
            pixels = np.asarray(images.decode(bytes(flipped)))
        except UserError:
            continue
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_broken_exif_leaves_the_pixels(kind):
    """An intact image with broken EXIF is decoded, in one of the eight orientations."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Maker", 2.5
    options = {"lossless": True} if kind == "webp" else {}
    content = hostile.encode(hostile.photograph(24, 16), kind, exif=exif, **options)
    raw = exif.tobytes() if kind == "jpeg" else exif.tobytes().removeprefix(b"Exif\0\0")
    at, noise = content.index(raw), random.Random(0)
    upright = images.decode(content)
    allowed = {turned.tobytes() for turned in (upright, *map(upright.transpose, Image.Transpose))}
    for _ in range(100):
        fuzzed = bytearray(content)
        for _ in range(noise.choice([1, 2, 8, 60])):
            fuzzed[at + noise.randrange(len(raw))] = noise.randrange(256)
        if kind == "png":
            chunk = bytes(fuzzed[at - 4 : at + len(raw)])
            fuzzed[at + len(raw) : at + len(raw) + 4] = hostile.zlib.crc32(chunk).to_bytes(4, "big")
        assert images.decode(bytes(fuzzed)).tobytes() in allowed


def test_the_pixels_decoded_at_once_are_limited(monkeypatch):
    """All threads together decode at most the pixels of the largest allowed image."""
    content = hostile.encode(hostile.photograph(100, 80), "png")
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    held, most, lock = 0, 0, threading.Lock()

    def fit(image, height, width, how):
        nonlocal held, most
        with lock:
            held += 8000
            most = max(most, held)
        threading.Event().wait(0.01)
        with lock:
            held -= 8000
        return Image.new("RGB", (width, height))

    monkeypatch.setattr(images, "fit", fit)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: images.read(content, 4, 4), range(40)))
    assert most == 16_000


def test_threads_leave_the_warnings_as_they_were(files):
    before = list(warnings.filters)
    some = [content for _, content, expected in files if expected != hostile.BAD]

    def attempt(content):
        with contextlib.suppress(UserError):
            images.read(content, 8, 8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, some))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


def test_a_folder_of_them_on_the_command_line(files, exported_model, command, tmp_path):
    """Every file is reported once, in order, and the memory stays within 1 GB of that for one photograph."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name, content, _ in files:
        (folder / name).write_bytes(content)
    code = """
import resource, runpy, sys
sys.argv[0] = "predict"
try:
    runpy.run_module("cnn_jax.predict", run_name="__main__")
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
    rest = command("", f"--model={exported_model}", str(folder / "original.png"), code=code)
    assert rest.returncode == 0, rest.stderr
    done = command("", f"--model={exported_model}", "--json", str(folder), code=code)
    assert done.returncode == 1
    *errors, memory = done.stderr.splitlines()
    assert all(line.startswith(f"Error: {folder}/") for line in errors), done.stderr
    answered = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    refused = [line.removeprefix("Error: ").split(": ")[0] for line in errors]
    assert sorted(answered + refused) == sorted(str(folder / name) for name, _, _ in files)
    assert answered == sorted(answered) and refused == sorted(refused)
    assert int(memory) - int(rest.stderr.split()[-1]) < 2**20  # kilobytes
