"""A run of seconds, with everything random switched on: a narrow network, 200 digits, 2 epochs of 12.5 steps.

python -m cnn_jax.main --config=tests/small_config.py --workdir=/tmp/small
"""

from configs import augment


def get_config():
    config = augment.get_config()
    config.epochs = 2
    config.batch_size = 16
    config.steps_per_call = 5
    config.data.update({"name": "digits", "train_examples": 200, "validation": 100, "image_size": 8})
    config.augment.shift = 0.2  # one of 8 pixels
    config.model.update({"widths": (4, 8), "convs_per_block": 1, "hidden": (16,), "dropout": (0.1, 0.1, 0.2)})
    return config
