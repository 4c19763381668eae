"""augment: half of the images mirrored, each moved by up to a tenth of its side; twice the epochs.

python -m cnn_jax.main --config=configs/augment.py --workdir=/tmp/augment
"""

from configs import dropout_scheduled


def get_config():
    config = dropout_scheduled.get_config()
    config.augment.flip = True
    config.augment.shift = 0.1
    config.epochs = 100
    return config
