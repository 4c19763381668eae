"""Feeds damaged and hostile files to every reader of files that may come from strangers.

    python scripts/fuzz.py --count=2000 --output=reports/fuzz.json [--seed=0] [--readers=image,pth]

Each reader runs in a child process, on valid files and on changed copies of them: flipped bits, cuts, insertions,
extreme numbers, and, in exported models, changes below valid checksums. A reader must return a result or raise a
`UserError` with one line. Counted are: read, refused, traceback (any other exception), slow (more than 60 seconds),
crash (the process ended), and the largest growth of resident memory in a case.
"""

import argparse
import hashlib
import io
import json
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax import runtime  # noqa: E402

runtime.prepare(keep_memory=False)

import numpy as np  # noqa: E402

from cnn_jax.errors import UserError  # noqa: E402
from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402

SECONDS = 60
FIXTURES = ROOT / "tests" / "fixtures"
NUMBERS = [0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


# --- readers ---


def read_image(path: Path) -> None:
    """Decodes an image."""
    from cnn_jax.data import images

    images.read(path, 32, 32)


def read_exported(path: Path) -> None:
    """Loads an exported program and runs it."""
    from cnn_jax.inference import load_classifier

    classifier = load_classifier(path)
    classifier(np.zeros((1, *classifier.input_size, 3), np.uint8))


def read_pth(path: Path) -> None:
    """Reads a legacy PyTorch file."""
    from cnn_jax.models.pretrained import torch_legacy

    torch_legacy.read(path)


def read_keras_legacy(path: Path) -> None:
    """Reads weights of Keras 1 and 2."""
    from cnn_jax.models.pretrained import keras_legacy

    keras_legacy.read(path)


def read_keras_v3(path: Path) -> None:
    """Reads weights of Keras 3."""
    from cnn_jax.models.pretrained import keras_v3

    keras_v3.read(path)


def read_evaluation(path: Path) -> None:
    """Reads evaluation.json as the page and `predict` do."""
    from cnn_jax.inference import calibration
    from cnn_jax.page import evaluation

    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_bytes(path.read_bytes())
    calibration.read(folder, 25, None)
    evaluation.read_evaluation(folder)


# --- valid files ---


def images() -> list[bytes]:
    """Returns one image of each format."""
    from PIL import Image

    pixels = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    image, found = Image.fromarray(pixels).resize((48, 32)), []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def exported() -> list[bytes]:
    """Returns the exported model of the tests."""
    return [(FIXTURES / "model.jaxexport").read_bytes()]


def safetensors() -> list[bytes]:
    """Returns parameters exported as safetensors."""
    from cnn_jax.inference import load_classifier, weights

    classifier = load_classifier(FIXTURES / "finished")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        weights.write(path, classifier.members, classifier.metadata | {"step": classifier.step}, {})
        return [path.read_bytes()]


def pth() -> list[bytes]:
    """Returns a legacy PyTorch file of two tensors, written without PyTorch, and a nested one."""
    from cnn_jax.models.pretrained import torch_legacy

    def tensor(key: bytes, count: int, size: bytes) -> bytes:
        storage = b"(U\x07storagectorch\nFloatStorage\nU\x01" + key + b"U\x03cpuK" + bytes([count]) + b"NtQ"
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x89ccollections\nOrderedDict\n)RtR"
        )

    start = b"".join(
        pickle.dumps(each, 2) for each in (torch_legacy.MAGIC, torch_legacy.VERSION, {"little_endian": True})
    )
    first, second = tensor(b"0", 6, b"K\x02K\x03\x86K\x03K\x01\x86"), tensor(b"1", 3, b"K\x03\x85K\x01\x85")
    body = b"\x80\x02}(U\x01a" + first + b"U\x01b" + second + b"u."
    data = (6).to_bytes(8, "little") + bytes(24) + (3).to_bytes(8, "little") + bytes(12)
    nested = start + b"\x80\x02)" + b"\x85" * 20_000 + b"."
    return [start + body + pickle.dumps(["0", "1"], 2) + data, nested]


def keras(layers: str) -> list[bytes]:
    """Returns files of weights of Keras, and one with a link to another file."""
    import h5py

    found = []
    for hostile in (False, True):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            if layers == "legacy":
                file.attrs["layer_names"] = [b"conv", b"dense"]
                for name in ("conv", "dense"):
                    group = file.create_group(name)
                    group.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
                    group[f"{name}/kernel:0"] = np.arange(24, dtype=np.float32).reshape(4, 6)
                target = file["conv"]
            else:
                target = file.create_group("layers/conv2d/vars")
                target["0"] = np.arange(24, dtype=np.float32).reshape(4, 6)
            if hostile:
                target["1"] = h5py.ExternalLink("/etc/hostname", "/x")
                if layers == "legacy":
                    target.attrs["weight_names"] = [b"conv/kernel:0", b"1"]
        found.append(buffer.getvalue())
    return found


def evaluation() -> list[bytes]:
    """Returns an evaluation."""
    names = list("abc")
    matrix = np.eye(3, dtype=int).tolist()
    fields = {"step": 25, "seed": None, "temperature": 1.5, "threshold": 0.5, "class_names": names}
    return [json.dumps(fields | {"confusion_matrix": matrix}).encode()]


READERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Path], None], str]] = {
    "image": (images, read_image, "jpg"),
    "jaxexport": (exported, read_exported, "jaxexport"),
    "safetensors": (safetensors, read_exported, "safetensors"),
    "pth": (pth, read_pth, "pth"),
    "keras_legacy": (lambda: keras("legacy"), read_keras_legacy, "h5"),
    "keras_v3": (lambda: keras("v3"), read_keras_v3, "h5"),
    "evaluation": (evaluation, read_evaluation, "json"),
}


# --- changes ---


def change(content: bytes, others: list[bytes], noise: random.Random) -> bytes:
    """Returns a changed copy."""
    changed = bytearray(content)
    for _ in range(noise.choice([1, 1, 2, 5])):
        if not changed:
            break
        start = noise.randrange(len(changed) if noise.random() < 0.5 else min(len(changed), 400))
        length = noise.choice([1, 2, 4, 8, 16, 100, 4000])
        kind = noise.randrange(8)
        if kind == 0:
            changed[start] ^= 1 << noise.randrange(8)
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length] * noise.choice([1, 2, 50])
        elif kind == 4:
            changed[start : start + length] = noise.randbytes(length)
        elif kind == 5:
            size = noise.choice([1, 2, 4, 8])
            number = noise.choice(NUMBERS) % 2 ** (8 * size)
            changed[start : start + size] = number.to_bytes(size, noise.choice(["little", "big"]))
        elif kind == 6:
            other = noise.choice(others)
            begin = noise.randrange(len(other))
            changed[start : start + length] = other[begin : begin + length]
        else:
            changed = bytearray(digits(bytes(changed), noise))
    return bytes(changed)


def digits(content: bytes, noise: random.Random) -> bytes:
    """Replaces one number written in ASCII by an extreme one."""
    places = [index for index, byte in enumerate(content[:5000]) if 48 <= byte < 58]
    if not places:
        return content
    place = noise.choice(places)
    return content[:place] + str(noise.choice([-1, 0, 10**6, 10**18, "1e999", "NaN"])).encode() + content[place + 1 :]


def resign(content: bytes, noise: random.Random, others: list[bytes]) -> bytes:
    """Changes an exported model below valid checksums: a value of its header, or its program."""
    magic, _, line, program = content.split(b"\n", 3)
    header = json.loads(line)
    if noise.random() < 0.5:
        program = change(program, [program], noise)
    else:
        key = noise.choice(list(header))
        values = [
            None,
            -1,
            0,
            10**30,
            "",
            "x" * 10**5,
            [],
            {},
            [[]] * 3,
            {"a": {}},
            [10**9] * 2,
            True,
            1e308,
            "\x1b[31m",
        ]
        header[key] = noise.choice(values)
        if noise.random() < 0.3:
            inner = noise.choice(["model", "eval", "dtype", "seeds"])
            header["config"] = header["config"] if isinstance(header.get("config"), dict) else {}
            header["config"][inner] = noise.choice(values)
    header |= {"payload_bytes": len(program), "payload_sha256": hashlib.sha256(program).hexdigest()}
    line = json.dumps(header).encode()
    return b"\n".join([magic, hashlib.sha256(line).hexdigest().encode(), line, program])


def cases(reader: str, seed: int, valid: list[bytes]) -> Callable[[int], bytes]:
    """Returns the content of a case by its number; the first ones are the valid files."""

    def case(number: int) -> bytes:
        if number < len(valid):
            return valid[number]
        noise = random.Random(f"{reader} {seed} {number}")
        original = noise.choice(valid)
        if reader == "jaxexport" and noise.random() < 0.7:
            return resign(original, noise, valid)
        return change(original, valid, noise)

    return case


# --- processes ---


def work(reader: str, seed: int, start: int, stop: int) -> None:
    """Runs the cases of one reader and prints a line before and after each."""
    make, read, suffix = READERS[reader]
    try:
        valid = make()
    except (ImportError, UserError) as error:
        print(f"unavailable {error}", flush=True)
        return
    case = cases(reader, seed, valid)

    def alarm(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"case.{suffix}")
        path.write_bytes(valid[0])
        read(path)  # not counted: imports and the first compilation
        for number in range(start, stop):
            path.write_bytes(case(number))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"start {number}", flush=True)
            signal.alarm(SECONDS)
            try:
                read(path)
                outcome = "read"
            except UserError as error:
                outcome = "refused" if "\n" not in str(error) else "traceback (several lines)"
            except TimeoutError:
                outcome = "slow"
            except BaseException as error:
                outcome = f"traceback {type(error).__name__}: {str(error)[:200]!r}"
            signal.alarm(0)
            grown = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 0) >> 10
            print(f"end {grown} {outcome}", flush=True)


def fuzz(reader: str, seed: int, count: int) -> dict:
    """Returns what came of the cases of one reader."""
    found, bad, largest, start = Counter(), [], 0, 0
    while start < count:
        command = [
            sys.executable,
            __file__,
            f"--work={reader}",
            f"--seed={seed}",
            f"--start={start}",
            f"--count={count}",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        current = None
        assert process.stdout
        watch = threading.Timer(300 + 3 * SECONDS, process.kill)
        for line in process.stdout:
            watch.cancel()
            watch = threading.Timer(3 * SECONDS, process.kill)
            watch.start()
            kind, _, rest = line.strip().partition(" ")
            if kind == "unavailable":
                watch.cancel()
                return {"unavailable": rest}
            if kind == "start":
                current = int(rest)
                continue
            grown, _, outcome = rest.partition(" ")
            largest = max(largest, int(grown))
            found[outcome.split(" ")[0]] += 1
            if not outcome.startswith(("read", "refused")):
                bad.append({"case": current, "outcome": outcome})
            start, current = (current or 0) + 1, None
        watch.cancel()
        status = process.wait()
        if current is not None:
            found["crash"] += 1
            bad.append({"case": current, "outcome": f"crash, status {status}"})
            start = current + 1
        elif status:
            raise RuntimeError(f"{reader}: the worker ended with status {status}")
    return {"cases": count, **dict(sorted(found.items())), "largest_growth_mb": largest, "failures": bad}


def main() -> int:
    """Fuzzes all readers and writes the report; the status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.seed, arguments.start, arguments.count)
        return 0
    found = {}
    for reader in arguments.readers.split(","):
        found[reader] = fuzz(reader, arguments.seed, arguments.count)
        print(reader, json.dumps(found[reader]), flush=True)
    if arguments.output:
        with files.replacing(arguments.output) as file:
            head = {"command": f"python scripts/fuzz.py --count={arguments.count} --seed={arguments.seed}"}
            file.write(json.dumps(head | revision(ROOT, ("cnn_jax", "configs")) | {"readers": found}, indent=1) + "\n")
    return int(any(each.get("failures") for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
