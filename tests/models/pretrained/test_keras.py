"""Weight files of Keras from strangers: nothing outside the file is read, and nothing larger than it is allocated."""

import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.models.pretrained import keras_legacy, keras_v3

h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'cnn_jax[transfer]'")


@pytest.fixture(params=["legacy", "v3"])
def reader(request, tmp_path):
    """Writes a file with one good array and what `add` adds to its group, and reads it."""

    def read(add):
        path = tmp_path / "weights.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("layers/conv2d/vars" if request.param == "v3" else "conv")
            group["0"] = np.arange(6, dtype=np.float32)
            add(group)
            if request.param == "legacy":
                file.attrs["layer_names"] = [b"conv"]
                group.attrs["weight_names"] = [name.encode() for name in group]
        return (keras_v3 if request.param == "v3" else keras_legacy).read(path)

    return read


def test_a_good_file_is_read(reader):
    (layer,) = reader(lambda group: group.create_dataset("1", data=np.ones((2, 3), np.float16))).values()
    first, second = layer.values()
    np.testing.assert_array_equal(first, np.arange(6))
    assert second.shape == (2, 3) and second.dtype == np.float32


def link(group):
    group["1"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(group):
    group["1"] = h5py.SoftLink("/layers")


def external(group):
    group.create_dataset("1", (4,), np.float32, external=[("/etc/hostname", 0, 16)])


def virtual(group):
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    group.create_virtual_dataset("1", layout)


def unwritten(group):
    group.create_dataset("1", (30_000, 30_000), np.float32, chunks=(100, 100))


def compressed(group):
    group.create_dataset("1", data=np.zeros(10**6, np.float32), compression="gzip")


def words(group):
    group["1"] = np.array([b"words"])


@pytest.mark.parametrize(
    "add, says",
    [
        (link, "is a link, which is not followed"), (soft_link, "is a link, which is not followed"),
        (external, "of which the file stores"), (virtual, "of which the file stores"),
        (unwritten, "of which the file stores 0"), (compressed, "it is compressed"),
        (words, "is not an array of numbers"),
        (lambda group: group.create_group("1"), "is not an array of numbers"),
    ],
)  # fmt: skip
def test_what_keras_does_not_write_is_refused(reader, add, says):
    with pytest.raises(UserError, match=says) as raised:
        reader(add)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("reads", [keras_legacy.read, keras_v3.read])
def test_a_list_on_which_hdf5_hangs_is_refused_in_time(tmp_path, monkeypatch, reads):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv", b"dense"]
    content = bytearray(path.read_bytes())
    size = content.index(b"GCOL") + 24  # of the first object in the heap of texts
    content[size : size + 8] = bytes(8)
    path.write_bytes(content)
    monkeypatch.setattr(keras_legacy, "_SECONDS", 3)
    with pytest.raises(UserError, match="HDF5 needs more than 3 s for its lists of names"):
        reads(path)


def test_a_file_on_which_hdf5_crashes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.h5"
    h5py.File(path, "w").close()
    monkeypatch.setattr(keras_legacy, "_TRIAL", "import os; os.abort()")
    with pytest.raises(UserError, match="HDF5 crashes"):
        keras_legacy.read(path)
