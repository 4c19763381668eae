"""The pictures on the page: uploads, and samples from scikit-learn."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.inference import Classifier
from cnn_jax.page import cards

MAX_BYTES = 20 * 2**20  # per file; a photograph from a telephone has about a third
MAX_PICTURES = 12  # of a visitor at once; each fills a screen

_HEIC = (".heic", ".heif")
_THUMBNAIL = (640, 640)
_PHOTOGRAPHS = {"Temple": "china.jpg", "Flower": "flower.jpg"}
_DIGITS = {"Digit 0": 0, "Digit 3": 3, "Digit 4": 4, "Digit 7": 7}  # the index of the first such digit in the data set

SAMPLES = (*_PHOTOGRAPHS, *_DIGITS)
_ABOUT_PHOTOGRAPHS = (
    "A temple in China (photograph by danielbuechele, CC BY 2.0) and a flower (by vultilion, CC BY 2.0). If they show "
    "nothing that belongs to a class, a good network says so."
)
_ABOUT_DIGITS = (
    " Handwritten digits of 8 x 8 pixels, enlarged (Alpaydin and Kaynak 1998): the network may have seen these in "
    "training."
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
      name: shown on the page.
      thumbnail: a data URI.
      pixels: the input of `Classifier.score`, `[1, height, width, 3]`, for each of `cnn_jax.data.images.FITS`.
      maps: the maps of what predictions depend on, as they were computed, by fit.
    """

    name: str
    thumbnail: str
    pixels: dict[str, UInt8[np.ndarray, "1 height width 3"]]
    maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read(name: str, decode: Callable[[], Image.Image], classifier: Classifier) -> Picture | UserError:
    """Returns a picture, or the error that explains why it cannot be read.

    Only what the page needs is kept: a photograph has a hundred times as many pixels.

    Args:
      name: shown on the page.
      decode: returns a new RGB image, which is modified.
      classifier: the classifier, to whose input size the picture is fitted.
    """
    try:
        image = decode()
        pixels = {fit: classifier.fit([image], fit) for fit in images.FITS}
    except UserError as error:
        return error
    image.thumbnail(_THUMBNAIL)  # in place: a copy of a large photograph would double the memory
    return Picture(name, cards.data_uri(image, "JPEG"), pixels)


def samples(class_names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Returns the names of the samples for a network with these classes, and what they show.

    The digits are for networks that know nothing else.
    """
    if set(class_names) <= set("0123456789"):
        return SAMPLES, _ABOUT_PHOTOGRAPHS + _ABOUT_DIGITS
    return tuple(_PHOTOGRAPHS), _ABOUT_PHOTOGRAPHS


def decode_upload(name: str, content: bytes) -> Image.Image:
    """Decodes an uploaded file.

    Raises:
      UserError: it is not an image, damaged, or too large; the message names the file.
    """
    if name.lower().endswith(_HEIC) and not images.EXTENSIONS & set(_HEIC):
        raise UserError(
            f"{name}: HEIC, the format of iPhones, cannot be read here. Convert it to JPEG; for new photographs, "
            "choose Settings > Camera > Formats > Most Compatible."
        )
    if len(content) > MAX_BYTES:
        raise UserError(f"{name}: more than {MAX_BYTES >> 20} MB; make it smaller first.")
    return images.decode(content, name)


def load_sample(name: str) -> Image.Image:
    """Returns one of `SAMPLES`, RGB."""
    from sklearn import datasets  # takes seconds to import; only the samples need it

    if name in _PHOTOGRAPHS:
        return Image.fromarray(datasets.load_sample_image(_PHOTOGRAPHS[name]))
    from cnn_jax.data import digits

    source, _ = digits.load()
    return Image.fromarray(source.images(np.array([_DIGITS[name]]))[0])
