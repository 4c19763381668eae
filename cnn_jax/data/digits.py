"""The embedded data set: scikit-learn's 1,797 handwritten digits, which need no network."""

import numpy as np
from PIL import Image

from cnn_jax.data.source import ArraySource

SIZE = 32


def load() -> tuple[ArraySource, None]:
    """Returns the digits as RGB images of 32x32 pixels; there is no test split of their own.

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository;
    8x8 pixels with values from 0 to 16, enlarged here by bicubic interpolation.
    """
    from sklearn.datasets import load_digits  # a second to import, and nothing else needs it

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in grey]
    pixels = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    return ArraySource(tuple("0123456789"), digits.target.astype(np.int32), pixels), None
