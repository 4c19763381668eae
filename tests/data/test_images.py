"""Every kind of image file is decoded to the pixels that an image viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image

from cnn_jax.data import images
from cnn_jax.errors import UserError


@pytest.fixture
def rgb():
    return np.random.RandomState(0).randint(0, 256, (6, 9, 3)).astype(np.uint8)


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(encoded):
    return np.asarray(images.decode(encoded))


def test_rgb_and_grey(rgb):
    np.testing.assert_array_equal(read(encode(Image.fromarray(rgb))), rgb)
    np.testing.assert_array_equal(read(encode(Image.fromarray(rgb[..., 0]))), np.repeat(rgb[..., :1], 3, -1))


def test_palette(rgb):
    image = Image.fromarray(rgb).quantize(8)
    np.testing.assert_array_equal(read(encode(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_composited_on_white(rgb):
    alpha = np.full((6, 9, 1), 255, np.uint8)
    alpha[:3] = 0
    alpha[3] = 51
    out = read(encode(Image.fromarray(np.concatenate([rgb, alpha], -1))))
    assert (out[:3] == 255).all()
    np.testing.assert_allclose(out[3], 0.2 * rgb[3] + 0.8 * 255, atol=1)
    np.testing.assert_array_equal(out[4:], rgb[4:])


def test_palette_with_a_transparent_colour(rgb):
    image = Image.fromarray(rgb).quantize(4)
    encoded = encode(image, transparency=0)
    clear = np.asarray(image) == 0
    assert clear.any() and (read(encoded)[clear] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)
    expected = np.repeat(np.round(grey / 257.0)[..., None], 3, -1)
    np.testing.assert_allclose(read(encode(Image.fromarray(grey))), expected, atol=1)
    np.testing.assert_allclose(read(encode(Image.fromarray(grey), "tiff")), expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(rgb, orientation):
    """All eight EXIF orientations of a photograph are decoded to the same pixels."""
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](rgb)))
    np.testing.assert_array_equal(read(encode(stored, exif=exif)), rgb)


def test_cmyk(rgb):
    smooth = Image.fromarray(rgb).resize((64, 64), Image.Resampling.BICUBIC)
    encoded = encode(smooth.convert("CMYK"), "jpeg", quality=95)
    assert np.abs(read(encoded).astype(int) - np.asarray(smooth)).mean() < 6


def test_the_first_frame_of_an_animation(rgb):
    frames = [Image.fromarray(rgb).quantize(32), Image.fromarray(255 - rgb).quantize(32)]
    encoded = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(encoded), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("cut", [0, 1, 8, 30, 100, -40])
def test_damaged_files_are_named(rgb, tmp_path, cut):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(Image.fromarray(rgb))[:cut])
    with pytest.raises(UserError, match=r"photo\.png: "):
        images.decode(path)


def test_missing_files_text_and_bombs_are_named(tmp_path, monkeypatch, rgb):
    with pytest.raises(UserError, match=r"nothing\.png: no such file"):
        images.decode(tmp_path / "nothing.png")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"text\.jpg: not an image"):
        images.decode(tmp_path / "text.jpg")
    with pytest.raises(UserError, match=r"a folder, not an image"):
        images.decode(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png: empty\. Replace"):
        images.decode(tmp_path / "empty.png")
    with pytest.raises(UserError, match=r"null: not a regular file\."):
        images.decode("/dev/null")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"a file of more than 0 MiB"):
        images.decode(encode(Image.fromarray(rgb)))
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 40)
    with pytest.raises(UserError, match=r"bomb\.png: more than 40 pixels"):
        images.decode(encode(Image.fromarray(rgb)), "bomb.png")


def test_other_kinds_of_file_are_not_images(rgb):
    """Pillow supports dozens of formats that no camera writes; they are refused."""
    for kind in ("ico", "tga", "pcx"):
        with pytest.raises(UserError, match="not an image that can be read"):
            images.decode(encode(Image.fromarray(rgb), kind))


def test_floating_point_is_scaled_by_the_smallest_white_that_fits():
    for white in (1, 255, 65535):
        grey = np.linspace(0, white, 54, dtype=np.float32).reshape(6, 9)
        expected = np.repeat(np.round(grey * (255 / white))[..., None], 3, -1)
        np.testing.assert_allclose(read(encode(Image.fromarray(grey), "tiff")), expected, atol=1)


def test_an_upright_image_is_not_rotated_again(rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    once = images.decode(encode(Image.fromarray(rgb), exif=exif))
    np.testing.assert_array_equal(np.asarray(images.to_rgb(once)), np.asarray(once))


def test_the_given_image_is_not_modified(rgb):
    given = Image.fromarray(rgb)
    given.info["dpi"] = (72, 72)
    converted = images.to_rgb(given)
    converted.paste((0, 0, 0), (0, 0, 9, 6))
    np.testing.assert_array_equal(np.asarray(given), rgb)
    assert given.info == {"dpi": (72, 72)}


@pytest.mark.parametrize("how", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (65_535, 1)])
def test_any_shape_fits(size, how):
    fitted = images.fit(Image.new("RGB", size, (9, 8, 7)), 32, 24, how)
    assert fitted.size == (24, 32)
    assert (np.asarray(fitted) == (9, 8, 7)).all(-1).any()


def test_read_is_decode_and_fit(rgb):
    encoded = encode(Image.fromarray(rgb))
    expected = images.fit(images.decode(encoded), 4, 5, "pad")
    np.testing.assert_array_equal(images.read(encoded, 4, 5, "pad"), np.asarray(expected))


def test_fit():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200
    image = Image.fromarray(wide)
    assert images.fit(image, 4, 10) is image
    assert (np.asarray(images.fit(image, 4, 4)) == 200).all()
    assert images.fit(image, 16, 8).size == (8, 16)
    padded = np.asarray(images.fit(image, 10, 10, "pad"))
    assert (padded[:3] == 0).all() and (padded[7:] == 0).all() and (padded[3:7] == wide).all()
    stretched = np.asarray(images.fit(image, 4, 4, "stretch"))
    assert stretched[0, 0, 0] < 40 and stretched[0, 1, 0] > 100


def test_heic_without_the_extra(monkeypatch):
    monkeypatch.setattr(images, "HAS_HEIC", False)
    with pytest.raises(UserError, match=r"the image: HEIC, which needs pip install 'cnn_jax\[heic\]'"):
        images.decode(b"\0\0\0\x18ftypheic" + bytes(40))


def test_heic(rgb):
    heif = pytest.importorskip("pillow_heif")
    smooth = Image.fromarray(rgb).resize((64, 48), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    heif.from_pillow(smooth).save(buffer, quality=95)
    difference = np.abs(read(buffer.getvalue()).astype(int) - np.asarray(smooth))
    assert difference.mean() < 8


def test_the_size_of_a_file_is_read_from_its_header(tmp_path, rgb):
    encoded = encode(Image.fromarray(rgb))
    (tmp_path / "a.png").write_bytes(encoded[: len(encoded) // 2])
    assert images.size(tmp_path / "a.png") == (9, 6)
