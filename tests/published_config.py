"""The run that tests/test_published.py repeats: the quickstart in seconds, with everything random switched on.

python -m cnn_jax.main --config=tests/published_config.py --workdir=/tmp/published
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.epochs = 2
    config.steps_per_call = 1  # a record per step: the first one that differs shows where to look
    config.tensorboard = "off"
    config.data.image_size = 16
    config.model.bn_momentum = 0.9  # 82 steps are few for the running statistics
    config.model.widths = (32, 64)
    config.model.dropout = (0.1, 0.1, 0.1)
    config.augment.shift = 0.1
    return config
