"""dropout_scheduled: dropout that grows block by block.

python -m cnn_jax.main --config=configs/dropout_scheduled.py --workdir=/tmp/dropout_scheduled
"""

from configs import dropout


def get_config():
    config = dropout.get_config()
    config.model.dropout = (0.2, 0.3, 0.4, 0.5)
    return config
