"""The embedded data set: the 1,797 handwritten digits of scikit-learn, without a download."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from cnn_jax.data.splits import ArraySource

SIZE = 32


def load() -> tuple[ArraySource, None]:
    """Returns the digits as RGB images of 32x32 pixels, and None, because there is no test split.

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository;
    8x8 pixels with values from 0 to 16, enlarged here by bicubic interpolation.
    """
    values, labels = _table()
    grey = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in grey]
    pixels = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    return ArraySource(tuple("0123456789"), labels.astype(np.int32), pixels), None


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Returns data and target of `sklearn.datasets.load_digits`, read from its file if it is found.

    Importing scikit-learn would take a second, a quarter of the time from the command to the first step.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
